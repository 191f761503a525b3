"""The report of an ONNX file: what goes in and out, what it means, and how far ONNX Runtime is from PyTorch."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from effp_fx.report.terminal import amount, table

if TYPE_CHECKING:  # onnx takes a while to import
    from effp_fx.export import ExportReport, Port

_PARTS = {
    "network": "the heads before the model's post-processing",
    "decoded": "boxes and scores of every anchor",
    "full": "detections",
}


def export_table(export: ExportReport) -> RenderableType:
    """The ONNX file: what goes in and out, and how far ONNX Runtime is from PyTorch."""
    made = table("ONNX", "", ">largest error", ">relative", title="ONNX Runtime against PyTorch")
    for port in export.inputs:
        made.add_row("in", str(port), "", "")
    named = {port.name: str(port) for port in export.outputs}
    for name in dict.fromkeys([*export.max_relative_error, *named]):
        absolute, relative = export.max_absolute_error.get(name), export.max_relative_error.get(name)
        shown = ["" if error is None else f"{error:.2e}" for error in (absolute, relative)]
        made.add_row("out" if name in named else "inside", named.get(name, name), *shown)
    whole_network = "the model's own outputs" if export.own_outputs else _PARTS[export.part]
    lines = [
        f"opset {export.opset}, {export.nodes_after} nodes ({export.nodes_before} before simplification), "
        f"{amount(export.bytes)}B; {whole_network}",
    ]
    if export.detections is not None:
        total, apart = export.detections
        lines.append(f"{total} detections compared with the model's, {apart} of them differ")
    return Group(made, Text("\n".join([*lines, *(f"note: {note}" for note in export.notes)])))


def export_json(export: ExportReport) -> dict[str, Any]:
    """What `export_table` says; errors by the name of the output."""
    return {
        "path": str(export.path),
        "part": export.part,
        "target": export.target,
        "inputs": [_port(port) for port in export.inputs],
        "outputs": [_port(port) for port in export.outputs],
        "own_outputs": export.own_outputs,
        "opset": export.opset,
        "nodes_before": export.nodes_before,
        "nodes_after": export.nodes_after,
        "bytes": export.bytes,
        "max_absolute_error": dict(export.max_absolute_error),
        "max_relative_error": dict(export.max_relative_error),
        "float64_noise": dict(export.float64_noise or {}),
        "decoding": asdict(export.decoding) if export.decoding else None,
        "detections": list(export.detections) if export.detections else None,
        "seconds": export.seconds,
        "notes": list(export.notes),
    }


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.shape)}
