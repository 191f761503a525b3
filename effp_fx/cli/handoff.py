"""What `effp-fx export --target` does: the folder for a board."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from effp_fx import report
from effp_fx.cli.arguments import Opened, print_json
from effp_fx.errors import ExportError

Target = Annotated[
    str | None,
    typer.Option(
        "--target", help="Write a folder for this board: jetson-xavier-nx, jetson-orin or tensorrt-10.", metavar="BOARD"
    ),
]
Tar = Annotated[bool, typer.Option("--tar", help="With --target: pack the folder as .tar.gz too.")]
Classes = Annotated[
    Path | None, typer.Option("--classes", metavar="FILE", help="With --target: names of the classes, one a line.")
]
Samples = Annotated[
    Path | None, typer.Option("--samples", metavar="DIR", help="With --target: pictures to check with, of one size.")
]
Calibration = Annotated[
    Path | None, typer.Option("--calibration", metavar="DIR", help="With --target: some hundred pictures for INT8.")
]


@dataclass(frozen=True)
class BundleOptions:
    """How the folder is made."""

    target: str
    tar: bool = False
    classes: Path | None = None
    samples: Path | None = None
    calibration: Path | None = None
    opset: int | None = None
    dynamic_batch: bool = False

    def write(self, opened: Opened, folder: Path, step: Any, as_json: bool) -> None:
        """Write the folder and show what was written."""
        # onnx takes a while to import, and most commands do without it.
        from effp_fx.export.handoff import handoff

        found = handoff(
            opened.model,
            folder,
            opened.example,
            target=self.target,
            classes=self._names(),
            samples=self.samples,
            calibration=self.calibration,
            opset=self.opset,
            dynamic_batch=self.dynamic_batch,
            tar=self.tar,
            progress=step,
        )
        if as_json:
            print_json(report.handoff_json(found))
            return
        report.show(report.handoff_table(found))

    def _names(self) -> list[str] | None:
        if self.classes is None:
            return None
        try:
            lines = self.classes.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            what = "the names of the classes cannot be read"
            raise ExportError(what, where=str(self.classes), seen=str(error)) from error
        return [line.strip() for line in lines if line.strip()]
