"""`effp-fx export`: the network of a model as ONNX, checked against PyTorch in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effp_fx import report
from effp_fx.cli.arguments import (
    DynamicBatch,
    Input,
    Json,
    Model,
    Randomise,
    Seed,
    open_model,
    print_json,
)
from effp_fx.cli.handoff import BundleOptions, Calibration, Classes, Samples, Tar, Target
from effp_fx.cli.outputs import OnnxOptions, folder

Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The ONNX file; with --target the folder for the board.")
]
Opset = Annotated[
    int | None, typer.Option("--opset", help="ONNX opset; 17 where none is given, which TensorRT 8 reads rightly.")
]


def export(
    model: Model,
    output: Output = Path("model.onnx"),
    target: Target = None,
    tar: Tar = False,
    classes: Classes = None,
    samples: Samples = None,
    calibration: Calibration = None,
    opset: Opset = None,
    dynamic_batch: DynamicBatch = False,
    shape: Input = None,
    randomise: Randomise = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write MODEL as ONNX and run it in ONNX Runtime; with --target, a folder to build, check and run on a board."""
    bundle = None
    if target is not None:
        if output == Path("model.onnx"):
            output = Path("handoff")
        bundle = BundleOptions(target, tar, classes, samples, calibration, opset, dynamic_batch)
    elif tar or classes or samples or calibration:
        raise typer.BadParameter("--tar, --classes, --samples and --calibration belong to --target")
    folder(output.parent)
    with report.progress() as step:
        step(f"build {model}")
        opened = open_model(model, shape, randomise=randomise, seed=seed)
        if bundle is not None:
            bundle.write(opened, output, step, json)
            return
        found = OnnxOptions(opset or 17, dynamic_batch).export(opened.model, output, opened.example, step)
    if json:
        print_json(report.export_json(found))
        return
    report.show(report.export_table(found))
    typer.echo()
    report.show(report.file_list({"ONNX": output}))
