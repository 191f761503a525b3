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
