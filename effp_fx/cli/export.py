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
    Opset,
    Randomise,
    Seed,
    open_model,
    print_json,
)
from effp_fx.cli.outputs import OnnxOptions, folder

Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The ONNX file.")]


def export(
    model: Model,
    output: Output = Path("model.onnx"),
    opset: Opset = 17,
    dynamic_batch: DynamicBatch = False,
    shape: Input = None,
    randomise: Randomise = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write MODEL as ONNX, up to the last tensors before its post-processing, and run it in ONNX Runtime."""
    folder(output.parent)
    with report.progress() as step:
        step(f"build {model}")
        opened = open_model(model, shape, randomise=randomise, seed=seed)
        found = OnnxOptions(opset, dynamic_batch).export(opened.model, output, opened.example, step)
    if json:
        print_json(report.export_json(found))
        return
    report.show(report.export_table(found))
    typer.echo()
    report.show(report.file_list({"ONNX": output}))
