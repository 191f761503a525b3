"""Prunes a model and writes all that belongs to it into one folder; each file is written whole or not at all."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from torch import nn

from effp_fx import api, atomic_file, report, store
from effp_fx.cli.arguments import Opened
from effp_fx.errors import EffpError, ExportError
from effp_fx.inputs import Example

if TYPE_CHECKING:
    from effp_fx.export import ExportReport

Step = Callable[[str], None]

SMALL, PLAN, ONNX, REPORT = "small.safetensors", "plan.json", "small.onnx", "report.json"


@dataclass(frozen=True)
class OnnxOptions:
    """How the compact model is exported."""

    opset: int = 17
    dynamic_batch: bool = False
    part: str = "network"

    def export(self, model: nn.Module, path: Path, example: Example | None, step: Step) -> ExportReport:
        """Write the ONNX file; returns the exporter's report."""
        # onnx takes a while to import, and most commands do without it.
        from effp_fx.export import export_onnx

        return export_onnx(
            model,
            path,
            example,
            part=self.part,
            opset=self.opset,
            dynamic_batch=self.dynamic_batch,
            progress=step,
        )


@dataclass(frozen=True)
class Written:
    """A pruned model, its ONNX export if there is one, and its files."""

    result: api.PruneResult
    export: ExportReport | None
    files: dict[str, object]

    def json(self) -> dict[str, Any]:
        """What report.json holds."""
        return report.prune_json(self.result, self.files, self.export)

    def show(self) -> None:
        """Print the tables."""
        report.show(report.prune_table(self.result))
        typer.echo()
        if self.export is not None:
            report.show(report.export_table(self.export))
            typer.echo()
        report.show(report.file_list(self.files))


def folder(path: Path) -> Path:
    """Make the folder, before anything slow is done; a run that fails or is interrupted leaves no empty one behind.

    Raises EffpError where it cannot be written to.
    """
    new = [place for place in (path, *path.parents) if not place.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EffpError("the output folder cannot be made", where=str(path), seen=error.strerror) from error
    if not os.access(path, os.W_OK):
        raise EffpError("the output folder cannot be written to", where=str(path))
    atexit.register(_drop_empty, [place.absolute() for place in new])
    return path


def _drop_empty(places: list[Path]) -> None:
    for place in places:
        with contextlib.suppress(OSError):  # it holds something, or is gone
            place.rmdir()


def prune_into(out: Path, opened: Opened, onnx: OnnxOptions | None, step: Step, **options: Any) -> Written:
    """Prune, verify, write; a model that does not verify raises, and nothing is written.

    Args:
        out: the folder, which exists.
        opened: the model.
        onnx: how to export it, None: not at all.
        step: told each step.
        options: of `api.prune_reported`.

    Raises:
        ExportError: with the model's own files written, which it says.
    """
    result = api.prune_reported(opened.model, opened.example, progress=step, **options)
    step("write the files")
    files: dict[str, object] = {
        "model": store.save(result.model, out / SMALL, built_from=opened.built_from),
        "plan": atomic_file.write(out / PLAN, (result.plan.to_json() + "\n").encode()),
    }
    export = None
    if onnx is not None:
        try:
            export = onnx.export(result.model, out / ONNX, opened.example, step)
        except ExportError as error:
            kept = ", ".join(str(path) for path in files.values())
            error.mend = f"{error.mend or '--no-onnx leaves the export out'}; already written: {kept}"
            raise
        files["ONNX"] = out / ONNX
    elif (out / ONNX).exists():
        files["ONNX, of an earlier run"] = out / ONNX
    files["report"] = out / REPORT
    written = Written(result, export, files)
    atomic_file.write(out / REPORT, (json.dumps(written.json(), indent=2) + "\n").encode())
    return written
