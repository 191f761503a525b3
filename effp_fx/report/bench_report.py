"""The report of a benchmark: medians, spread, and how much of the first network's time the others take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType

from effp_fx.evaluate.latency import Latency
from effp_fx.report.terminal import Bar, percent, table


def bench_table(runtime: str, latencies: Sequence[Latency]) -> RenderableType:
    """One row a network; the first is what the others are compared with."""
    made = table(runtime, ">median", ">middle half", ">of the first", "", ">rounds")
    first, most = latencies[0].median, max(latency.median for latency in latencies)
    for latency in latencies:
        low, high = latency.quartiles
        made.add_row(
            latency.name,
            f"{1e3 * latency.median:.2f} ms",
            f"{1e3 * low:.2f} to {1e3 * high:.2f} ms",
            percent(latency.median / first),
            Bar(latency.median / most, latency.median / most),
            str(len(latency.seconds)),
        )
    return made


def latency_table(runtime: str, latencies: Sequence[Latency]) -> RenderableType:
    """Percentiles and throughput; the last network is what the others are compared with."""
    made = table(runtime, ">p50", ">p90", ">p99", ">per second", ">of the last", ">rounds")
    for latency in latencies:
        times = (f"{1e3 * latency.percentile(share):.2f} ms" for share in (0.5, 0.9, 0.99))
        part = percent(latency.median / latencies[-1].median)
        made.add_row(latency.name, *times, f"{latency.per_second:.1f}", part, str(len(latency.seconds)))
    return made


def latency_json(runtime: str, latencies: Sequence[Latency]) -> dict[str, Any]:
    """Percentiles in seconds, runs a second, every time; `ratio`: part of the last network's median."""
    rows = [
        {
            "name": latency.name,
            "p50_seconds": latency.percentile(0.5),
            "p90_seconds": latency.percentile(0.9),
            "p99_seconds": latency.percentile(0.99),
            "per_second": latency.per_second,
            "ratio": latency.median / latencies[-1].median,
            "seconds": list(latency.seconds),
        }
        for latency in latencies
    ]
    return {"runtime": runtime, "networks": rows}


def bench_json(runtime: str, latencies: Sequence[Latency]) -> dict[str, Any]:
    """Medians and every time in seconds; `ratio`: part of the first network's median."""
    rows = [
        {
            "name": latency.name,
            "median_seconds": latency.median,
            "ratio": latency.median / latencies[0].median,
            "seconds": list(latency.seconds),
        }
        for latency in latencies
    ]
    return {"runtime": runtime, "networks": rows}
