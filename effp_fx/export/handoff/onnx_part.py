"""From a model to an ONNX file that the target builds rightly, as far as its tables tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from effp_fx.errors import ExportError
from effp_fx.export import parts
from effp_fx.export.onnx import export_onnx
from effp_fx.export.report import ExportReport
from effp_fx.export.tensorrt import TensorRTReport, Verdict, check_tensorrt, target
from effp_fx.inputs import as_example
from effp_fx.models import Detection, adapter_for, example_for

Progress = Callable[[str], None]

_LOWER = 16
"""The opset below the targets' own, in which ops are written out that old releases lack."""


@dataclass(frozen=True)
class Work:
    """From the model to a file that the target builds rightly, as far as is known."""

    model: nn.Module
    example_inputs: Any
    target: str
    detection: Detection | None
    dynamic_batch: bool
    file: Path
    progress: Progress

    @property
    def network(self) -> nn.Module:
        """The module that computes."""
        adapter = adapter_for(self.model)
        path = adapter.network_path(self.model) if adapter else ""
        return self.model.get_submodule(path) if path else self.model

    def export(self, part: str, opset: int | None) -> tuple[ExportReport, TensorRTReport]:
        """Write the file, at a lower opset where the target's own does not do."""
        aim = target(self.target)
        for number in [opset] if opset is not None else [aim.opset, _LOWER]:
            report = self._write(self._part(part), number)
            self.progress(f"check against TensorRT {aim.tensorrt}")
            checked = check_tensorrt(self.file, self.target)
            if checked.ok:
                return report, checked
        raise _refusal(checked)

    def _part(self, part: str) -> str:
        if part != "auto":
            return part
        try:
            return "decoded" if parts.detection_of(self.network, self.detection, "decoded") else "network"
        except ExportError:
            return "network"

    def _write(self, part: str, opset: int) -> ExportReport:
        return export_onnx(
            self.model,
            self.file,
            self.example_inputs,
            part=part,
            opset=opset,
            target=self.target,
            detection=self.detection,
            dynamic_batch=self.dynamic_batch,
            progress=self.progress,
        )

    def record(self, report: ExportReport) -> parts.Recorded:
        """The part once more, to be run in PyTorch."""
        given = self.example_inputs
        example = as_example(given) if given is not None else example_for(self.network)
        meaning = parts.detection_of(self.network, self.detection, report.part)
        return parts.record(self.network, example, meaning, False, self.progress)


def _refusal(checked: TensorRTReport) -> ExportError:
    bad = [
        (node, finding)
        for node in checked.nodes
        for finding in node.findings
        if not finding.verdict.builds or finding.verdict is Verdict.WRONG
    ]
    node, first = bad[0]
    return ExportError(
        f"TensorRT {checked.target.tensorrt} would not build this network, or would compute something else",
        where=f"{node.op} {node.name}, and {len(bad) - 1} more" if len(bad) > 1 else f"{node.op} {node.name}",
        seen=f"{first.verdict}: {first.why}",
        mend=first.mend or "another target, or a network without this op",
    )
