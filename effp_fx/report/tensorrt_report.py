"""The report of a TensorRT check: the nodes that something is to be said of, the DLA, the channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from effp_fx.report.terminal import amount, percent, table

if TYPE_CHECKING:
    from effp_fx.export.tensorrt import CheckedNode, TensorRTReport

_ODD_SHOWN = 3
"""Layers with odd channel counts that a table names, those that cost most first."""


def check_table(found: TensorRTReport) -> RenderableType:
    """The verdict, then why, then what it means for the DLA and for channel counts."""
    aim = found.target
    place = f"{aim.board} ({aim.software}, TensorRT {aim.tensorrt})"
    lines = [
        f"{found.path.name}, opset {found.opset}: {found.verdict} on {place}",
        "nodes: " + ", ".join(f"{count} {verdict}" for verdict, count in found.counts.items() if count),
        *found.notes,
    ]
    parts: list[RenderableType] = [Text("\n".join(lines))]
    for made in (_findings(found), _fall_backs(found), _dla(found), _channels(found)):
        parts += [Text(), made] if made is not None else []
    source = f"by {aim.release.source} ({aim.release.date}); TensorRT itself was not run"
    return Group(*parts, Text(), Text(source))


def _findings(found: TensorRTReport) -> Table | None:
    said: dict[tuple[str, str, str, str], list[str]] = {}
    for node in found.nodes:
        for finding in node.findings:
            said.setdefault((str(finding.verdict), node.op, finding.why, finding.mend or ""), []).append(node.name)
    made = table("verdict", "op", ">nodes", "~first", "~why", "~to mend it")
    for (verdict, op, why, mend), names in said.items():
        made.add_row(verdict, op, str(len(names)), names[0], why, mend)
    return made if said else None


def _fall_backs(found: TensorRTReport) -> Table | None:
    reasons: dict[tuple[str, str], list[CheckedNode]] = {}
    for node in found.nodes:
        if node.placement.device == "GPU" and node.placement.why:
            reasons.setdefault((node.op, node.placement.why), []).append(node)
    made = table("not on the DLA", ">nodes", ">MACs", "~first", "~why")
    for (op, why), nodes in reasons.items():
        made.add_row(op, str(len(nodes)), amount(sum(node.macs for node in nodes)), nodes[0].name, why)
    return made if reasons else None


def _dla(found: TensorRTReport) -> Table | None:
    made = table("DLA", ">layers on it", ">on the GPU", ">MACs on it", ">changes of side", ">pieces")
    for precision, one in found.dla.items():
        made.add_row(
            f"{one.engine}, {precision}",
            str(one.layers_on_dla),
            str(one.layers_on_gpu),
            percent(one.macs_share),
            str(one.switches),
            f"{one.loadables} of {one.most_loadables}",
        )
    return made if found.dla else None


def _channels(found: TensorRTReport) -> RenderableType | None:
    made = table("channels", ">multiple of", ">convolutions off it", ">rounding up adds", "~the dearest")
    for name, cost in found.channels.items():
        dearest = sorted(cost.odd, key=lambda layer: layer.macs - layer.padded_macs)[:_ODD_SHOWN]
        shown = ", ".join(f"{layer.name} {layer.inputs} to {layer.outputs}" for layer in dearest)
        made.add_row(name, str(cost.multiple), f"{len(cost.odd)} of {cost.layers}", percent(cost.extra), shown)
    return made if any(cost.layers for cost in found.channels.values()) else None


def check_json(found: TensorRTReport) -> dict[str, Any]:
    """Everything: each node, the DLA by precision, the channels by multiple."""
    aim = found.target
    return {
        "path": str(found.path),
        "target": aim.name,
        "board": aim.board,
        "tensorrt": aim.tensorrt,
        "source": aim.release.source,
        "date": aim.release.date,
        "opset": found.opset,
        "verdict": str(found.verdict),
        "builds": found.builds,
        "counts": {str(verdict): count for verdict, count in found.counts.items()},
        "notes": list(found.notes),
        "nodes": [_node_json(node) for node in found.nodes],
        "dla": {precision: vars(one) for precision, one in found.dla.items()},
        "channels": {
            name: {
                "multiple": cost.multiple,
                "convolutions": cost.layers,
                "macs": cost.macs,
                "padded_macs": cost.padded_macs,
                "odd": [vars(layer) for layer in cost.odd],
            }
            for name, cost in found.channels.items()
        },
    }


def _node_json(node: CheckedNode) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "verdict": str(node.verdict),
        "macs": node.macs,
        "device": node.placement.device,
        "why_not_dla": node.placement.why,
        "findings": [
            {"rule": one.rule, "verdict": str(one.verdict), "why": one.why, "to_mend_it": one.mend}
            for one in node.findings
        ],
    }
