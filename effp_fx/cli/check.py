"""`effp-fx check`: what the TensorRT of a board would do with an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effp_fx import report
from effp_fx.cli.arguments import Json, print_json

File = Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The ONNX file.")]
Target = Annotated[
    str, typer.Option("--target", help="jetson-xavier-nx, jetson-orin or tensorrt-10: whose tables are looked up.")
]


def check(file: File, target: Target = "jetson-xavier-nx", json: Json = False) -> None:
    """Say of each node what that TensorRT does with it. Exit status 1 where it would not build, or compute wrongly."""
    # onnx takes a while to import, and most commands do without it.
    from effp_fx.export.tensorrt import check_tensorrt

    found = check_tensorrt(file, target)
    if json:
        print_json(report.check_json(found))
    else:
        report.show(report.check_table(found))
    if not found.ok:
        raise typer.Exit(1)
