"""`effp-fx data`: draw a data set of scenes, or look one through."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from effp_fx import report
from effp_fx.cli.arguments import Json, print_json
from effp_fx.data import Difficulty, write_scenes
from effp_fx.data.inspection import check_dataset
from effp_fx.data.layouts import LAYOUTS, Layout

app = typer.Typer(
    name="data", rich_markup_mode=None, help="Draw a data set of scenes, or check a data set.", no_args_is_help=True
)

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder: absent, empty, or a set made alike.")]
Part = Annotated[float | None, typer.Option(min=0, max=1, help="This alone, where it is not to be --difficulty.")]


@app.command()
def scenes(
    out: Out,
    images: Annotated[int, typer.Option(help="Images to train on.")] = 2000,
    val_images: Annotated[int | None, typer.Option(help="To validate on; a quarter of --images if not given.")] = None,
    test_images: Annotated[int | None, typer.Option(help="To test on; as many as to validate on if not given.")] = None,
    size: Annotated[int, typer.Option(help="Side of the images, pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Another seed, another set; the same one, the same bytes.")] = 0,
    difficulty: Annotated[float, typer.Option(min=0, max=1, help="0 is clean, 1 as hard as it gets.")] = 0.2,
    clutter: Part = None,
    occlusion: Part = None,
    noise: Part = None,
    jitter: Part = None,
    smallest: Annotated[int | None, typer.Option(help="Longer side of the smallest objects, pixels.")] = None,
    most: Annotated[int, typer.Option(help="Objects in an image, at most.")] = 4,
    layout: Annotated[str, typer.Option("--format", help="voc, coco or yolo.")] = "voc",
    processes: Annotated[int, typer.Option(help="As many draw at once.")] = 1,
) -> None:
    """Draw a data set: twelve classes of shapes, glyphs and textures, with clutter, occlusion, noise."""
    known: dict[str, Layout] = {name: name for name in LAYOUTS}
    if layout not in known:
        raise typer.BadParameter(f"{layout!r} is not one of {', '.join(LAYOUTS)}", param_hint="--format")
    given = {"clutter": clutter, "occlusion": occlusion, "noise": noise, "jitter": jitter}
    hard = dataclasses.replace(
        Difficulty.of(difficulty),
        **{name: value for name, value in given.items() if value is not None},
    )
    with report.progress() as step:
        written = write_scenes(
            out,
            images=images,
            val_images=val_images,
            test_images=test_images,
            size=size,
            seed=seed,
            difficulty=hard,
            smallest=smallest,
            most=most,
            layout=known[layout],
            processes=processes,
            progress=step,
        )
    report.show(report.file_list({"scenes": written}))


@app.command()
def check(
    path: Annotated[str, typer.Argument(metavar="DIR", help="A VOC, COCO or YOLO folder, or voc:DIR and so on.")],
    split: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable.")] = None,
    most: Annotated[int, typer.Option(min=0, help="Problems that are listed, at most.")] = 20,
    json: Json = False,
) -> None:
    """Decode and read all of a data set; print what it holds and what is wrong. Exit status 1 where something is."""
    with report.progress() as step:
        checks = check_dataset(path, split or (), progress=step)
    if json:
        print_json(report.data_json(checks))
    else:
        report.show(report.data_table(checks, most))
    if any(one.report.problems for one in checks):
        raise typer.Exit(1)
