"""`effp-fx prune`: a compact model with its plan, its ONNX file and its report, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="FILE", help="Train with Ultralytics on this data.yaml, and prune."),
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Of that training.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An argument of Ultralytics' train: imgsz=320; repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with that training from FOLDER/weights/last.pt.")]
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
    data: Data = None,
    epochs: Epochs = None,
    settings: Settings = None,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Cut a model down to its targets, prove that nothing else changed, and write it; with --data, train it as well."""
    if data is not None or epochs is not None or settings or resume:
        if data is None or epochs is None:
            raise typer.BadParameter("a training needs both --data and --epochs", param_hint="--data")
        if shape is not None or randomise:
            raise typer.BadParameter("--input and --randomise are for pruning without data", param_hint="--data")
        cut = {"target_flops": target_flops, "target_params": target_params, "round_to": round_to}
        chosen = {"importance": importance, "ignore": tuple(ignore or ()), "groups": groups}
        _train(model, data, epochs, folder(output), settings or [], resume, {**cut, **chosen}, json)
        return
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


def _train(
    model: str,
    data: str,
    epochs: int,
    out: Path,
    settings: list[str],
    resume: bool,
    options: dict[str, Any],
    json: bool,
) -> None:
    from effp_fx.cli.prune_while_training import train_and_prune  # Ultralytics is an extra

    found = train_and_prune(model, data, epochs, out, settings, resume, **options)
    if json:
        print_json(found)
        return
    report.show(report.file_list({"best": found["best"], "last": found["last"]}))
    typer.echo(f"\n{found['flops']:.1%} of the FLOPs, {found['params']:.1%} of the parameters")
    for name, value in found["metrics"].items():
        typer.echo(f"{name} {value:.4f}")
