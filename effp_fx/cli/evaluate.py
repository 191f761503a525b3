"""`effp-fx eval`: the mAP of a detector on a data set, as COCO and as PASCAL VOC measure it."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from effp_fx import data as data_sets
from effp_fx import report
from effp_fx.cli.arguments import Json, Model, open_model, print_json
from effp_fx.cli.train import Data, OnErrorOption, error_policy
from effp_fx.errors import TrainingError
from effp_fx.train.judging import judge
from effp_fx.train.ranks import joined
from effp_fx.train.starting_weights import load_weights
from effp_fx.train.task import with_classes


def evaluate(
    model: Model,
    data: Data,
    split: Annotated[str, typer.Option(help="The split to judge on.")] = "val",
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of a dense MODEL: a checkpoint, or safetensors.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU where there is one.")] = None,
    on_error: OnErrorOption = "stop",
    json: Json = False,
) -> None:
    """Judge MODEL on a data set: mAP of COCO and of PASCAL VOC."""
    compact = model.endswith(".safetensors")
    if compact and weights is not None:
        raise typer.BadParameter("a compact model brings its weights with it", param_hint="--weights")
    if not compact and weights is None:
        raise TrainingError(
            "the model has no weights to judge",
            seen=f"{model}, which is built without any",
            mend="--weights FILE: dense.safetensors or last.safetensors of `effp-fx train`, or plain safetensors",
        )
    with report.progress() as step, joined(device) as ranks:
        step(f"read {data}")
        judged_on = data_sets.open_dataset(
            data, split, on_error=error_policy(on_error), transforms=data_sets.as_it_is()
        )
        step(f"build {model}")
        network = open_model(model if compact else with_classes(model, len(judged_on.classes))).model
        if weights is not None:
            load_weights(network, weights)
        step(f"judge {len(judged_on)} images")
        begin = time.perf_counter()
        batches = data_sets.loader(judged_on, batch_size, workers=workers, rank=ranks.rank, world=ranks.world)
        scores = judge(network.to(ranks.device), batches, judged_on.classes, ranks=ranks)
        seconds = time.perf_counter() - begin
    if not ranks.leads:
        return
    if json:
        print_json({"model": model, "data": data, "split": split, "seconds": seconds, **asdict(scores)})
    else:
        report.show(report.scores_table(scores, seconds))
