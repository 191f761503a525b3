"""`effp-fx demo`: the whole way on one detector, from drawn scenes to an ONNX file that runs; or the cut alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effp_fx import report
from effp_fx.cli.arguments import Json, Seed, TargetFlops, open_model, print_json
from effp_fx.cli.outputs import OnnxOptions, folder, prune_into
from effp_fx.cli.prune import TargetParams
from effp_fx.data import write_scenes
from effp_fx.train.recipe import Recipe
from effp_fx.train.run import train as run
from effp_fx.train.task import Task

DemoModel = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Another model than the small SSD.")]
Train = Annotated[bool, typer.Option("--train/--no-train", help="Without training: SSD300 with random weights, cut.")]
Images = Annotated[int, typer.Option("--images", min=4, help="Scenes to train on; a quarter more to judge on.")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="As often is every scene seen.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")]

_SIZE = 96
"""Pixels: of the scenes, and of our small detectors."""
_ROUND_TO = 8
"""Channel counts that runtimes take fast: odd ones can eat up what the FLOPs save."""
_JUDGED = 5
"""Epochs from one mAP to the next: judging takes as long as training on as many images."""


def demo(
    model: DemoModel = None,
    train: Train = True,
    target_flops: TargetFlops = 0.5,
    target_params: TargetParams = None,
    images: Images = 800,
    epochs: Epochs = 20,
    seed: Seed = 0,
    output: Output = Path("out"),
    json: Json = False,
) -> None:
    """Draw scenes, train a small SSD on them and prune it on the way to half its FLOPs and parameters, export, time."""
    out = folder(output)
    if not train:
        _cut(model or "torchvision:ssd300_vgg16", out, seed, target_flops, target_params, json)
        return
    task = Task(
        model or "effp:ssd_small",
        str(out / f"scenes-{images}-{seed}"),
        out,
        Recipe(epochs=epochs),
        target_flops=target_flops,
        target_params=0.5 if target_params is None else target_params,
        augment="flip",
        session={"round_to": _ROUND_TO},
        seed=seed,
        judge_every=_JUDGED,
    )
    with report.run_progress() as watch:
        watch.note(f"draw {images} scenes to train on")
        write_scenes(task.data, images=images, test_images=0, size=_SIZE, seed=seed)
        found = run(task, watch, overwrite=True)
    if found is None:
        return
    if json:
        print_json(report.run_json(found))
        return
    report.show(report.run_table(found))


def _cut(model: str, out: Path, seed: int, target_flops: float | None, target_params: float | None, json: bool) -> None:
    """Trace, prune, verify and export, with random weights."""
    with report.progress() as step:
        step(f"build {model}")
        opened = open_model(model, randomise=True, seed=seed)
        targets = {"target_flops": target_flops, "target_params": target_params}
        written = prune_into(out, opened, OnnxOptions(), step, **targets)
    if json:
        print_json({"trace": report.trace_json(written.result.trace), **written.json()})
        return
    report.show(report.trace_table(written.result.trace))
    typer.echo()
    written.show()
    typer.echo("\nThe weights are random: this shows that the cut is exact, not what it costs in accuracy.")
