"""The report of an INT8 file: what was quantised, and what it cost in mAP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from effp_fx.report.terminal import amount, table

if TYPE_CHECKING:  # onnx takes a while to import
    from effp_fx.export.int8 import Int8Report


def int8_table(found: Int8Report) -> RenderableType:
    """The file in float and in INT8, side by side."""
    made = table("", ">FP32", ">INT8", title="INT8 by ONNX Runtime (QDQ)")
    made.add_row("size", f"{amount(found.bytes_float)}B", f"{amount(found.bytes)}B")
    made.add_row("nodes", str(found.nodes_float), str(found.nodes))
    made.add_row("layers in INT8", "0", f"{found.layers} of {found.layers + found.layers_in_float}")
    if found.scores is not None and found.scores_float is not None:
        for name in ("map", "map50"):
            made.add_row(name, f"{getattr(found.scores_float, name):.4f}", f"{getattr(found.scores, name):.4f}")
    return Group(made, Text(f"ranges by {found.method} over {found.images} pictures"))


def int8_json(found: Int8Report) -> dict[str, Any]:
    """What `int8_table` says."""
    scores = {"fp32": found.scores_float, "int8": found.scores}
    return {
        "path": str(found.path),
        "method": found.method,
        "images": found.images,
        "layers_int8": found.layers,
        "layers_float": found.layers_in_float,
        "nodes": {"fp32": found.nodes_float, "int8": found.nodes},
        "bytes": {"fp32": found.bytes_float, "int8": found.bytes},
        "map": {name: value.map for name, value in scores.items() if value is not None},
        "map50": {name: value.map50 for name, value in scores.items() if value is not None},
    }
