"""The report of a traced model: layers, totals, what is frozen and why, channel groups; as tables and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from effp_fx.groups import Analysis, ChannelGroup
from effp_fx.plan import package_version
from effp_fx.report.layers import FrozenCause, LayerRow, frozen_causes, layer_rows
from effp_fx.report.subjects import Traced
from effp_fx.report.terminal import Fitting, amount, percent, table, text, timings, whole

# As many reasons as are read at a glance; `--json` has all of them.
_SHOWN = 12


def trace_table(trace: Traced) -> RenderableType:
    """The layers in the order in which they run, the totals, and what is frozen, the costliest first."""
    rows = layer_rows(trace.analysis)
    causes = frozen_causes(trace.analysis)
    parts: list[RenderableType] = [_layers(rows, trace.flops), Text(""), Text("\n".join(_totals(trace, rows)))]
    if causes:
        parts += [Text(""), _frozen(causes, trace.flops)]
    if trace.notes:
        parts += [Text(""), Text("\n".join(f"note: {note}" for note in trace.notes))]
    return Group(*parts)


def trace_text(trace: Traced) -> str:
    """`trace_table` as plain lines, for `str(trace)`."""
    return text(trace_table(trace)).rstrip("\n")


def channel_table(trace: Traced) -> RenderableType:
    """Each channel group with the layers it couples and every slice that goes with a channel of it."""
    made = table("group", ">channels", ">at least", ">multiple of", "~layers", "~slices", title="channel groups")
    for group in trace.analysis.groups:
        slices = "\n".join(f"{part.role:<5} {part.tensor}[{part.dim}] x{part.per_channel}" for part in group.slices)
        layers = "\n".join(group.layers)
        made.add_row(group.name, str(group.channels), str(group.min_kept), str(group.multiple_of), layers, slices)
    words = (
        "slices: role, weight[dimension], rows of it for one channel; in: reads it, out: makes it, carry: follows it"
    )
    return Group(made, Text(""), Text(words))


def trace_json(trace: Traced) -> dict[str, Any]:
    """All that the tables show and more, as JSON: FLOPs and parameters are whole numbers, shares parts of 1."""
    analysis = trace.analysis
    return {
        "effp_fx": package_version(),
        "model": trace.model_name,
        "flops": whole(trace.flops),
        "params": whole(trace.params),
        "channels": analysis.channels,
        "prunable_flops_share": trace.prunable_flops_share,
        "layers": [layer_json(row, trace.flops) for row in layer_rows(analysis)],
        "groups": [_group_json(group) for group in analysis.groups],
        "frozen": [_cause_json(cause, trace.flops) for cause in frozen_causes(analysis)],
        "notes": list(trace.notes),
        "seconds": dict(trace.seconds),
    }


def layer_json(row: LayerRow, total: float) -> dict[str, Any]:
    """One layer as JSON; `share` is its part of the dense FLOPs."""
    return {
        "layer": row.layer,
        "type": row.kind,
        "channels": row.channels,
        "groups": list(row.groups),
        "gammas": list(row.gammas),
        "flops": whole(row.flops),
        "share": row.flops / total if total else 0.0,
        "params": row.params,
        "frozen": row.frozen,
        "why": row.why,
        "train_only": row.train_only,
    }


_COLUMNS = ("layer", "type", ">channels", "group", "gamma", ">FLOPs", ">share", ">params", "~frozen and why")
# What a narrow terminal can do without.
_NARROWER = ((), ("gamma",), ("gamma", "type"), ("gamma", "type", ">params", "group"))


def _layers(rows: tuple[LayerRow, ...], total: float) -> Fitting:
    choices = []
    for left_out in _NARROWER:
        shown = [name for name in _COLUMNS if name not in left_out]
        made = table(*shown)
        for row in rows:
            cells = dict(zip(_COLUMNS, _cells(row, total), strict=True))
            made.add_row(*(cells[name] for name in shown))
        choices.append(made)
    return Fitting(tuple(choices))


def _cells(row: LayerRow, total: float) -> tuple[str, ...]:
    return (
        row.layer,
        row.kind + (" (train only)" if row.train_only else ""),
        str(row.channels) if row.channels else "-",
        _several(row.groups),
        _several(tuple(_near(gamma, row.layer) for gamma in row.gammas)),
        amount(row.flops) if row.flops else "-",
        percent(row.flops / total) if row.flops and total else "-",
        amount(row.params) if row.params else "-",
        _why(row),
    )


def _why(row: LayerRow) -> str:
    if not row.frozen:
        return ""
    part = "all" if row.frozen >= row.channels else f"{row.frozen} of {row.channels}"
    return f"{part}: {row.why}"


def _several(names: tuple[str, ...]) -> str:
    if not names:
        return "-"
    return names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "")


def _near(gamma: str, layer: str) -> str:
    """The norm of a gamma, without the path that it shares with the layer's parent."""
    norm = gamma.rpartition(".")[0] or gamma
    parent = layer.rpartition(".")[0]
    near = norm.removeprefix(f"{parent}.") if parent else norm
    # The "1" of a Sequential says nothing by itself.
    return norm if near.isdigit() else near


def _totals(trace: Traced, rows: tuple[LayerRow, ...]) -> list[str]:
    analysis = trace.analysis
    lines = [
        f"{trace.model_name}: {amount(trace.flops)} FLOPs (2 per multiply-accumulate), "
        f"{amount(trace.params)} parameters, {len(rows)} layers",
        f"prunable: {percent(trace.prunable_flops_share)} of the FLOPs, by {analysis.channels} channels "
        f"in {len(analysis.groups)} groups",
    ]
    idle = _idle_params(analysis, rows)
    if idle > 0:
        lines.append(f"{amount(idle)} parameters belong to layers that did not run on the example inputs")
    if trace.seconds:
        lines.append(f"time: {timings(trace.seconds)}")
    return lines


def _idle_params(analysis: Analysis, rows: tuple[LayerRow, ...]) -> int:
    sizes = [tensor.shape for tensor in analysis.tensors.values() if tensor.is_parameter]
    total = 0
    for shape in sizes:
        size = 1
        for length in shape:
            size *= length
        total += size
    return total - sum(row.params for row in rows)


def _frozen(causes: tuple[FrozenCause, ...], total: float) -> Table:
    made = table(">FLOPs", ">channels", ">layers", "~reason", "~for one", title="frozen, the costliest first")
    for cause in causes[:_SHOWN]:
        share = percent(cause.flops / total) if total else "-"
        made.add_row(share, str(cause.channels), str(len(cause.layers)), cause.reason, _example(cause))
    if len(causes) > _SHOWN:
        rest = causes[_SHOWN:]
        share = percent(sum(cause.flops for cause in rest) / total) if total else "-"
        layers = sum(len(cause.layers) for cause in rest)
        made.add_row(share, str(sum(cause.channels for cause in rest)), str(layers), f"{len(rest)} other reasons", "")
    return made


def _example(cause: FrozenCause) -> str:
    return f"{cause.layers[0]} at {cause.place}" if cause.place else cause.layers[0]


def _group_json(group: ChannelGroup) -> dict[str, Any]:
    slices = [
        {"tensor": part.tensor, "dim": part.dim, "role": part.role, "per_channel": part.per_channel}
        for part in group.slices
    ]
    return {
        "name": group.name,
        "channels": group.channels,
        "smallest_kept": group.min_kept,
        "multiple_of": group.multiple_of,
        "layers": list(group.layers),
        "gammas": list(group.gammas),
        "slices": slices,
    }


def _cause_json(cause: FrozenCause, total: float) -> dict[str, Any]:
    return {
        "reason": cause.reason,
        "channels": cause.channels,
        "share": cause.flops / total if total else 0.0,
        "layers": list(cause.layers),
        "place": cause.place,
    }
