"""`effp-fx bench accuracy`: every pruning method on one model and data set; same epochs, batches, optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effp_fx import report
from effp_fx.cli.arguments import Ignore, Json, Model, print_json
from effp_fx.cli.prune import RoundTo, TargetParams
from effp_fx.cli.train import Data, OnErrorOption, error_policy
from effp_fx.train.recipe import LEARNING_RATES, WEIGHT_DECAYS, Recipe
from effp_fx.train.task import Task

Methods = Annotated[
    str, typer.Option("--methods", metavar="NAMES", help="all, or names with commas between: dense,uniform,tcfp,effp.")
]
Targets = Annotated[
    list[float] | None, typer.Option("--target-flops", metavar="KEPT", help="FLOPs to keep; repeatable. 0.5 if absent.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the bench is, and goes on.")]


def accuracy(
    model: Model,
    data: Data,
    methods: Methods = "all",
    target_flops: Targets = None,
    target_params: TargetParams = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each method and target.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of every method, both its sessions together.")] = Recipe.epochs,
    batch_size: Annotated[int, typer.Option(min=1, help="Images.")] = Recipe.batch_size,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = Recipe.optimizer,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; 0.02 for sgd, 0.002 for adamw.")] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Forward pass in half precision.")] = False,
    augment: Annotated[str, typer.Option(help="flip, light, ssd or none.")] = Task.augment,
    split: Annotated[str, typer.Option(help="The split to train on.")] = Task.split,
    val_split: Annotated[str, typer.Option(help="The split to judge on.")] = Task.val_split,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Begin from these weights.")] = None,
    on_error: OnErrorOption = "stop",
    round_to: RoundTo = 1,
    ignore: Ignore = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU where there is one.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in a folder that holds a bench.")] = False,
    output: Output = Path("bench"),
    json: Json = False,
) -> None:
    """Train MODEL by every method; the same command again goes on where a bench was cut off."""
    # torchvision's detectors and the exporter take a while to import.
    from effp_fx.bench.accuracy import run
    from effp_fx.bench.grid import Grid
    from effp_fx.methods import METHODS

    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=LEARNING_RATES.get(optimizer, 1.0) if lr is None else lr,
        weight_decay=WEIGHT_DECAYS.get(optimizer, 0.0),
    )
    task = Task(
        model,
        data,
        output,
        recipe,
        session={"ignore": tuple(ignore or ())},
        weights=weights,
        split=split,
        val_split=val_split,
        augment=augment,
        on_error=error_policy(on_error),
        amp=amp,
        device=device,
        workers=workers,
    )
    names = tuple(METHODS) if methods == "all" else tuple(name.strip() for name in methods.split(","))
    grid = Grid(task, names, tuple(target_flops or (0.5,)), target_params, seeds, round_to)
    with report.grid_progress() as watch:
        found = run(grid, watch, overwrite=overwrite)
    if json:
        print_json(report.grid_json(found))
    else:
        report.show(report.grid_table(found))
