"""The report of a latency bench: time kept over FLOPs kept, of whole networks and of their layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from effp_fx.report.terminal import amount, percent, table

_SHOWN = 20
"""Layers in the table; JSON has all."""


@dataclass(frozen=True)
class RatioRow:
    """One network."""

    name: str
    flops: float
    seconds: float
    """Median."""
    quartiles: tuple[float, float]
    rounds: int


@dataclass(frozen=True)
class LayerTime:
    """One op of the runtime, in all networks that have it."""

    name: str
    kind: str
    seconds: Mapping[str, float]
    """By the network's name: median."""


@dataclass(frozen=True)
class RatioReport:
    """Networks in one runtime; the first is dense."""

    runtime: str
    rows: tuple[RatioRow, ...]
    layers: tuple[LayerTime, ...] = ()

    def with_layers(self, layers: tuple[LayerTime, ...]) -> RatioReport:
        """The same with its layers."""
        return replace(self, layers=layers)

    def kept(self, row: RatioRow) -> tuple[float, float]:
        """Parts of the dense network's FLOPs and time."""
        return row.flops / self.rows[0].flops, row.seconds / self.rows[0].seconds


def ratio_table(found: RatioReport) -> RenderableType:
    """A row a network; below it the layers that take the dense one longest."""
    made = table(found.runtime, ">FLOPs", ">kept", ">median", ">middle half", ">kept", ">time over FLOPs", ">rounds")
    for row in found.rows:
        flops, time = found.kept(row)
        low, high = row.quartiles
        made.add_row(
            row.name,
            amount(row.flops),
            percent(flops),
            f"{1e3 * row.seconds:.2f} ms",
            f"{1e3 * low:.2f} to {1e3 * high:.2f} ms",
            percent(time),
            "" if row is found.rows[0] else f"{time / flops:.2f}",
            str(row.rounds),
        )
    return Group(made, Text(""), _layer_table(found)) if found.layers else made


def ratio_json(found: RatioReport) -> dict[str, Any]:
    """Seconds and FLOPs; `ratio`: time kept over FLOPs kept."""
    rows = []
    for row in found.rows:
        flops, time = found.kept(row)
        entry = {"name": row.name, "flops": row.flops, "median_seconds": row.seconds, "quartiles": list(row.quartiles)}
        rows.append({**entry, "rounds": row.rounds, "flops_kept": flops, "time_kept": time, "ratio": time / flops})
    layers = [{"name": layer.name, "op": layer.kind, "seconds": dict(layer.seconds)} for layer in found.layers]
    return {"runtime": found.runtime, "networks": rows, "layers": layers}


def _layer_table(found: RatioReport) -> RenderableType:
    names = [row.name for row in found.rows]
    columns = [f">{name}" for name in names] + [f">{name}, kept" for name in names[1:]]
    made = table("layer", "op", *columns, title=f"the slowest {min(_SHOWN, len(found.layers))} layers, microseconds")
    for layer in found.layers[:_SHOWN]:
        times = [layer.seconds.get(name) for name in names]
        dense = times[0]
        kept = [percent(time / dense) if time is not None and dense else "" for time in times[1:]]
        made.add_row(layer.name, layer.kind, *("" if time is None else f"{1e6 * time:.0f}" for time in times), *kept)
    return made
