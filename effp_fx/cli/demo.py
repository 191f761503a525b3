"""`effp-fx demo`: the whole way on one detector, from its name to an ONNX file that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effp_fx import report
from effp_fx.cli.arguments import Json, Seed, TargetFlops, open_model, print_json
from effp_fx.cli.outputs import OnnxOptions, folder, prune_into

DemoModel = Annotated[str, typer.Option("--model", metavar="MODEL", help="Another model than SSD300.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")]


def demo(
    model: DemoModel = "torchvision:ssd300_vgg16",
    target_flops: TargetFlops = 0.5,
    seed: Seed = 0,
    output: Output = Path("out"),
    json: Json = False,
) -> None:
    """Build SSD300 with random weights, trace it, prune it to half the FLOPs, verify, export, run in ONNX Runtime."""
    out = folder(output)
    with report.progress() as step:
        step(f"build {model}")
        opened = open_model(model, randomise=True, seed=seed)
        written = prune_into(out, opened, OnnxOptions(), step, target_flops=target_flops)
    if json:
        print_json({"trace": report.trace_json(written.result.trace), **written.json()})
        return
    report.show(report.trace_table(written.result.trace))
    typer.echo()
    written.show()
    typer.echo("\nThe weights are random: this shows that the cut is exact, not what it costs in accuracy.")
