"""`effp-fx train`: a detector trained and pruned in one session, with its checkpoints, its ONNX and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from effp_fx import report
from effp_fx.cli.arguments import Ignore, Json, Model, TargetFlops, print_json
from effp_fx.cli.outputs import folder
from effp_fx.cli.prune import RoundTo, TargetParams
from effp_fx.data.problems import OnError
from effp_fx.train.recipe import LEARNING_RATES, WEIGHT_DECAYS, Recipe
from effp_fx.train.run import train as run
from effp_fx.train.task import Task

Data = Annotated[str, typer.Option("--data", metavar="DIR", help="A VOC, COCO or YOLO data set.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")]
OnErrorOption = Annotated[str, typer.Option("--on-error", help="Faulty images and boxes: stop, or skip and count.")]


def train(
    model: Model,
    data: Data,
    epochs: Annotated[int, typer.Option(min=1, help="As often is every image seen.")] = Recipe.epochs,
    target_flops: TargetFlops = None,
    target_params: TargetParams = None,
    dense: Annotated[bool, typer.Option("--dense", help="Do not prune; --target-flops 1 does the same.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images, of each process.")] = Recipe.batch_size,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = Recipe.optimizer,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; 0.02 for sgd, 0.002 for adamw.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of weights; 5e-4 for sgd, 0.01 for adamw.")] = None,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = Recipe.clip,
    ema: Annotated[float, typer.Option(help="Keep a moving average with this weight, 0.999, and deploy it.")] = 0.0,
    amp: Annotated[bool, typer.Option("--amp", help="Forward pass in half precision.")] = False,
    augment: Annotated[str, typer.Option(help="flip, light, ssd or none.")] = Task.augment,
    multi_scale: Annotated[float, typer.Option(help="Sizes up to this part larger or smaller.")] = 0.0,
    split: Annotated[str, typer.Option(help="The split to train on.")] = Task.split,
    val_split: Annotated[str, typer.Option(help="The split to judge on.")] = Task.val_split,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Begin from these weights.")] = None,
    on_error: OnErrorOption = "stop",
    updates: Annotated[int | None, typer.Option(help="How often the mask is chosen anew.")] = None,
    start: Annotated[float | None, typer.Option(help="Part of the steps after which pruning begins.")] = None,
    round_to: RoundTo = 1,
    ignore: Ignore = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU where there is one.")] = None,
    eval_every: Annotated[int, typer.Option(min=1, help="Epochs from one mAP to the next.")] = 1,
    save_every: Annotated[int, typer.Option(min=0, help="Steps from one checkpoint to the next, beside epochs.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in a folder that holds a run.")] = False,
    output: Output = Path("out"),
    json: Json = False,
) -> None:
    """Train MODEL on a data set and prune it on the way; under torchrun in several processes."""
    session: dict[str, Any] = {"round_to": round_to, "ignore": tuple(ignore or ())}
    if target_flops == 1 and target_params in (None, 1):
        dense, target_flops, target_params = True, None, None
    asked = {"updates": updates, "start": start}
    task = Task(
        model,
        data,
        folder(output),
        Recipe(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=LEARNING_RATES.get(optimizer, 1.0) if lr is None else lr,
            weight_decay=WEIGHT_DECAYS.get(optimizer, 0.0) if weight_decay is None else weight_decay,
            clip=clip,
            ema=ema,
        ),
        target_flops=target_flops,
        target_params=target_params,
        dense=dense,
        session=session | {name: value for name, value in asked.items() if value is not None},
        weights=weights,
        split=split,
        val_split=val_split,
        augment=augment,
        multi_scale=multi_scale,
        on_error=error_policy(on_error),
        seed=seed,
        amp=amp,
        device=device,
        workers=workers,
        judge_every=eval_every,
        save_every=save_every,
    )
    with report.run_progress() as watch:
        found = run(task, watch, resume=resume, overwrite=overwrite)
    if found is None:  # of several processes the first one speaks
        return
    if json:
        print_json(report.run_json(found))
    else:
        report.show(report.run_table(found))


def error_policy(name: str) -> OnError:
    """What becomes of faulty data. Raises typer.BadParameter for another word."""
    known: dict[str, OnError] = {word: word for word in get_args(OnError)}
    if name not in known:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint="--on-error")
    return known[name]
