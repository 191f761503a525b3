"""The report of a compile bench: seconds of each step of both tools, over the size of the model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from effp_fx.report.terminal import table


@dataclass
class CompileRow:
    """One model: seconds by the step's name, one entry a repeat."""

    model: str
    convolutions: int
    ours: list[dict[str, float]] = field(default_factory=list)
    theirs: list[dict[str, float]] = field(default_factory=list)
    failed: str | None = None
    """Why Torch-Pruning has no times."""


@dataclass(frozen=True)
class CompileReport:
    """All models."""

    rows: tuple[CompileRow, ...]
    steps: tuple[str, ...]
    their_steps: tuple[str, ...]


def compile_table(found: CompileReport) -> RenderableType:
    """A row a model; medians in seconds."""
    names = [f">{name}" for name in (*found.steps, "effp_fx", "verify")]
    made = table("model", ">convolutions", *names, ">Torch-Pruning", ">effp_fx over it")
    for row in found.rows:
        ours, theirs = total(row.ours, found.steps), total(row.theirs, found.their_steps)
        made.add_row(
            row.model,
            str(row.convolutions),
            *(f"{_median(row.ours, step):.2f}" for step in found.steps),
            f"{ours:.2f}",
            f"{_median(row.ours, 'verify'):.2f}",
            f"{theirs:.2f}" if row.theirs else "failed",
            f"{ours / theirs:.2f}" if row.theirs else "",
        )
    lines = [f"{row.model}, Torch-Pruning: {row.failed}" for row in found.rows if row.failed]
    return Group(made, Text("\n".join(lines))) if lines else made


def compile_json(found: CompileReport) -> list[dict[str, Any]]:
    """Every time; `seconds` are medians of the sums."""
    return [
        {
            **asdict(row),
            "seconds": total(row.ours, found.steps),
            "torch_pruning_seconds": total(row.theirs, found.their_steps) if row.theirs else None,
        }
        for row in found.rows
    ]


def total(runs: Sequence[dict[str, float]], steps: Sequence[str]) -> float:
    """The median, over the repeats, of the sum of the steps; 0 of none."""
    return statistics.median(sum(run.get(step, 0.0) for step in steps) for run in runs) if runs else 0.0


def _median(runs: Sequence[dict[str, float]], step: str) -> float:
    return statistics.median(run.get(step, 0.0) for run in runs) if runs else 0.0
