"""`effp-fx prune`: a compact model with its plan, its ONNX file and its report, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effp_fx import report
from effp_fx.cli.arguments import (
    DynamicBatch,
    Groups,
    Ignore,
    Input,
    Json,
    Model,
    Opset,
    Randomise,
    Seed,
    TargetFlops,
    open_model,
    print_json,
)
from effp_fx.cli.outputs import OnnxOptions, folder, prune_into

TargetParams = Annotated[
    float | None,
    typer.Option("--target-params", metavar="KEPT", help="Parameters to keep: up to 1 a part, above a count."),
]
RoundTo = Annotated[int, typer.Option("--round-to", min=1, help="Make channel counts multiples of this.")]
Importance = Annotated[str, typer.Option("--importance", help="gamma, l1, l2 or random.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")]
Onnx = Annotated[bool, typer.Option("--onnx/--no-onnx", help="Export the compact model to ONNX.")]


def prune(
    model: Model,
    target_flops: TargetFlops = None,
    target_params: TargetParams = None,
    round_to: RoundTo = 1,
    importance: Importance = "gamma",
    ignore: Ignore = None,
    groups: Groups = None,
    shape: Input = None,
    randomise: Randomise = False,
    seed: Seed = 0,
    output: Output = Path("out"),
    onnx: Onnx = True,
    opset: Opset = 17,
    dynamic_batch: DynamicBatch = False,
    json: Json = False,
) -> None:
    """Cut a model down to its targets, prove that nothing else changed, and write it."""
    out = folder(output)
    with report.progress() as step:
        step(f"build {model}")
        opened = open_model(model, shape, randomise=randomise, seed=seed)
        written = prune_into(
            out,
            opened,
            OnnxOptions(opset, dynamic_batch) if onnx else None,
            step,
            target_flops=target_flops,
            target_params=target_params,
            round_to=round_to,
            importance=importance,
            ignore=ignore or (),
            groups=groups,
        )
    if json:
        print_json(written.json())
    else:
        written.show()
        typer.echo("\nNo data was used: the accuracy that the cut costs has to be won back by training.")
