"""The report of an accuracy bench: a row for each method and target, pictures, JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from effp_fx.report.scatter_chart import Point, scatter_chart
from effp_fx.report.terminal import percent, table


@dataclass(frozen=True)
class GridRun:
    """One training of a bench."""

    method: str
    target: float | None
    seed: int
    flops: float = math.nan
    """Kept part of the dense network's."""
    params: float = math.nan
    map: float = math.nan
    map50: float = math.nan
    seconds: float = math.nan
    """Of training, all that the method does included."""
    cpu_seconds: float = math.nan
    milliseconds: float | None = None
    """Median latency in ONNX Runtime, of seed 0."""
    failed: str | None = None
    """Why there is no network."""


@dataclass(frozen=True)
class GridReport:
    """What is done of a bench."""

    model: str
    data: str
    epochs: int
    runs: tuple[GridRun, ...]
    missing: int
    """Trainings without a network: not run yet, or failed."""
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GridRow:
    """The trainings of one method at one target, all seeds."""

    method: str
    target: float | None
    runs: tuple[GridRun, ...]

    def mean(self, what: Callable[[GridRun], float]) -> float:
        """Over the seeds."""
        return statistics.mean(what(run) for run in self.runs)

    def deviation(self, what: Callable[[GridRun], float]) -> float:
        """Standard deviation over the seeds; 0 of one."""
        return statistics.stdev(what(run) for run in self.runs) if len(self.runs) > 1 else 0.0

    @property
    def milliseconds(self) -> float | None:
        """Of the seed that was timed."""
        return next((run.milliseconds for run in self.runs if run.milliseconds is not None), None)


def grid_rows(runs: Sequence[GridRun]) -> list[GridRow]:
    """The rows that have a network, those of a target together, the best first."""
    found: dict[tuple[float | None, str], list[GridRun]] = {}
    for run in runs:
        if run.failed is None:
            found.setdefault((run.target, run.method), []).append(run)
    rows = [GridRow(method, target, tuple(several)) for (target, method), several in found.items()]
    return sorted(rows, key=lambda row: (-(row.target or math.inf), -row.mean(lambda run: run.map)))


def grid_table(found: GridReport) -> RenderableType:
    """A row for each method and target, then what failed and where the files are."""
    columns = (">target", ">FLOPs", ">parameters", ">mAP@.5", ">mAP", ">seeds", ">minutes", ">CPU", ">latency")
    made = table("method", *columns, title=f"{found.model}, {found.epochs} epochs each")
    for row in grid_rows(found.runs):
        time = row.milliseconds
        made.add_row(
            row.method,
            "" if row.target is None else f"{row.target:g}",
            percent(row.mean(lambda run: run.flops)),
            percent(row.mean(lambda run: run.params)),
            spread(row, lambda run: run.map50),
            spread(row, lambda run: run.map),
            str(len(row.runs)),
            f"{row.mean(lambda run: run.seconds) / 60:.1f}",
            f"{row.mean(lambda run: run.cpu_seconds) / 60:.1f}",
            "" if time is None else f"{time:.2f} ms",
        )
    lines = [f"{run.method} at {run.target:g}, seed {run.seed}: {run.failed}" for run in found.runs if run.failed]
    lines += [f"{name}: {path}" for name, path in found.files.items()]
    return Group(made, Text(""), Text("\n".join(lines)))


def spread(row: GridRow, what: Callable[[GridRun], float]) -> str:
    """Percent, with the deviation where there are several seeds."""
    shown = f"{100 * row.mean(what):.2f}"
    return f"{shown} ± {100 * row.deviation(what):.2f}" if len(row.runs) > 1 else shown


def grid_json(found: GridReport) -> dict[str, Any]:
    """Every training, and the means; numbers that are not there are null."""
    rows = [
        {
            "method": row.method,
            "target": row.target,
            "seeds": len(row.runs),
            **{name: _number(row.mean(attrgetter(name))) for name in _MEANS},
            "map_deviation": row.deviation(lambda run: run.map),
            "milliseconds": row.milliseconds,
        }
        for row in grid_rows(found.runs)
    ]
    runs = [{key: _number(value) for key, value in asdict(run).items()} for run in found.runs]
    about = {"model": found.model, "data": found.data, "epochs": found.epochs, "missing": found.missing}
    return {**about, "rows": rows, "runs": runs, "files": found.files}


def grid_pictures(found: GridReport) -> dict[str, str]:
    """mAP over FLOPs and over training time, as SVG by name."""
    rows = grid_rows(found.runs)

    def points(across: Callable[[GridRun], float]) -> list[Point]:
        return [
            Point(
                row.method if row.target is None else f"{row.method} {row.target:g}",
                row.mean(across),
                100 * row.mean(lambda run: run.map),
                100 * row.deviation(lambda run: run.map),
            )
            for row in rows
            if math.isfinite(row.mean(across))
        ]

    over_flops = scatter_chart(
        "mAP over FLOPs", points(lambda run: 100 * run.flops), across="FLOPs, % of dense", up="mAP, %"
    )
    over_time = scatter_chart(
        "mAP over training time", points(lambda run: run.seconds / 60), across="minutes", up="mAP, %"
    )
    return {"map_over_flops": over_flops, "map_over_time": over_time}


_MEANS = ("flops", "params", "map", "map50", "seconds", "cpu_seconds")


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
