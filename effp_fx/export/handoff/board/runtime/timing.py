"""Times of the steps of each picture, as percentiles."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Any, Iterator

import numpy as np

STEPS = ("prepare", "network", "decode")


class Times:
    """Seconds of each step, one entry a picture."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {step: [] for step in STEPS}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        begin = time.perf_counter()
        yield
        self._seconds[name].append(time.perf_counter() - begin)

    def forget(self) -> None:
        """Drop what was measured so far, as warm-up."""
        for values in self._seconds.values():
            values.clear()

    def summary(self) -> dict[str, dict[str, float]]:
        """For each step and for all together: median, 90th and 99th percentile in milliseconds; pictures a second."""
        rows = {name: np.asarray(values) for name, values in self._seconds.items() if values}
        if not rows:
            return {}
        count = min(len(values) for values in rows.values())
        rows["all"] = np.sum([values[:count] for values in rows.values()], axis=0)
        return {name: _percentiles(values) for name, values in rows.items()}


def _percentiles(seconds: Any) -> dict[str, float]:
    low, middle, high = (float(np.percentile(seconds, at)) * 1e3 for at in (50, 90, 99))
    return {"p50_ms": low, "p90_ms": middle, "p99_ms": high, "per_second": len(seconds) / float(np.sum(seconds))}


def table(summary: dict[str, dict[str, float]]) -> str:
    """The summary as lines of text."""
    lines = [f"{'':9} {'p50':>10} {'p90':>10} {'p99':>10} {'per second':>12}"]
    for name, row in summary.items():
        times = " ".join(f"{row[key]:7.2f} ms" for key in ("p50_ms", "p90_ms", "p99_ms"))
        lines.append(f"{name:9} {times} {row['per_second']:12.1f}")
    return "\n".join(lines)
