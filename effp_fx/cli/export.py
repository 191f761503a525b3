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
from effp_fx.cli.int8 import Data, Int8, Method, Split
from effp_fx.cli.int8 import options as int8_options
from effp_fx.cli.outputs import OnnxOptions, folder

Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The ONNX file; with --target the folder for the board.")
]
Opset = Annotated[
    int | None, typer.Option("--opset", help="ONNX opset; 17 where none is given, which TensorRT 8 reads rightly.")
]

Part = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="PART",
        help="network (up to the raw heads), decoded (boxes and scores of every anchor) or full (detections).",
    ),
]


def export(
    model: Model,
    output: Output = Path("model.onnx"),
    target: Target = None,
    tar: Tar = False,
    classes: Classes = None,
    samples: Samples = None,
    calibration: Calibration = None,
    part: Part = None,
    int8: Int8 = None,
    data: Data = None,
    split: Split = "val",
    calibrate: Method = "entropy",
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
    quantise = int8_options(int8, data, split, calibrate)
    if bundle is not None and (part or quantise):
        raise typer.BadParameter("--part and --int8 do not go with --target, which chooses by itself")
    folder(output.parent)
    with report.progress() as step:
        step(f"build {model}")
        opened = open_model(model, shape, randomise=randomise, seed=seed)
        if bundle is not None:
            bundle.write(opened, output, step, json)
            return
        # Boxes and scores can be judged, raw heads cannot: a network that is quantised is written decoded.
        onnx = OnnxOptions(opset or 17, dynamic_batch, part or ("decoded" if quantise else "network"))
        found = onnx.export(opened.model, output, opened.example, step)
        small = quantise.write(opened.model, found, step) if quantise else None
    if json:
        print_json(report.export_json(found) | ({"int8": report.int8_json(small)} if small else {}))
        return
    report.show(report.export_table(found))
    if small is not None:
        typer.echo()
        report.show(report.int8_table(small))
    typer.echo()
    report.show(report.file_list({"ONNX": output} | ({"INT8": small.path} if small else {})))
