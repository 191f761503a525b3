"""The arguments that commands share, and what stands behind them: a model by its name, inputs by their shape."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from effp_fx import models, store
from effp_fx.inputs import Example, random_input
from effp_fx.models.registry import reference_tensor

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="torchvision:NAME, ..., file.py:factory or small.safetensors.")
]
Input = Annotated[
    str | None, typer.Option("--input", metavar="1x3x320x320", help="Shape of the images to run it on, batch first.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="NAME", help="A module, or a glob over modules, whose channels stay; repeatable."),
]
Groups = Annotated[Path | None, typer.Option("--groups", metavar="FILE", help="A groups file from --emit, edited.")]
Randomise = Annotated[
    bool, typer.Option("--randomise", help="Random norm scales, biases and statistics, for a model without weights.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of the random weights.")]
Opset = Annotated[int, typer.Option("--opset", help="ONNX opset; 17 is what TensorRT 8 reads rightly.")]
DynamicBatch = Annotated[bool, typer.Option("--dynamic-batch", help="Leave the batch size of the ONNX file open.")]
TargetFlops = Annotated[
    float | None,
    typer.Option(
        "--target-flops",
        help="FLOPs to keep: up to 1 a part, above a count. 0.5 where no target is given.",
        metavar="KEPT",
    ),
]

_SHAPE = re.compile(r"[1-9][0-9]*(x[1-9][0-9]*)*")


@dataclass(frozen=True)
class Opened:
    """A model that an argument named. `example` is None where the family's own inputs are to be taken."""

    model: nn.Module
    name: str
    example: Example | None
    built_from: str | None

    def inputs(self) -> Example:
        """What to run it on."""
        return self.example or models.example_for(self.model)


def open_model(name: str, shape: str | None = None, *, randomise: bool = False, seed: int = 0) -> Opened:
    """Build the model that the user named, or load it from a file of ours.

    Raises:
        typer.BadParameter: the shape is not written 1x3x320x320, or does not fit the model's inputs.
        EffpError: the name or the file is not known.
    """
    check_shape(shape)
    torch.manual_seed(seed)  # of what a builder draws: the same command gives the same files
    if name.endswith(".safetensors"):
        model = store.load(name)
        opened = Opened(model, name, None, getattr(model, store.BUILT_FROM, None))
    else:
        built = models.build(name)
        opened = Opened(built.model, name, built.given, name)
    if shape is not None:
        opened = Opened(opened.model, name, shaped(opened.inputs(), shape, opened.model), opened.built_from)
    if randomise:
        models.randomise(opened.model, seed, example=opened.inputs())
    return opened


def check_shape(shape: str | None) -> None:
    """Refuse a shape that is not written 1x3x320x320."""
    if shape is not None and not _SHAPE.fullmatch(shape):
        raise typer.BadParameter(f"{shape!r} is not a shape such as 1x3x320x320", param_hint="--input")


def shaped(example: Example, shape: str, model: nn.Module) -> Example:
    """The example with its images of this shape (batch first), as list or as tensor, whichever the model takes."""
    sizes = tuple(int(size) for size in shape.split("x"))
    images = random_input(sizes, like=reference_tensor(model))
    if example.args:
        return Example((_replaced(example.args[0], images, shape), *example.args[1:]), example.kwargs)
    for name, value in example.kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            return Example((), {**example.kwargs, name: _replaced(value, images, shape)})
    raise typer.BadParameter("this model takes no images", param_hint="--input")


def print_json(value: Any) -> None:
    """The one thing that a command with --json prints on standard output."""
    typer.echo(json.dumps(value, indent=2))


def _replaced(old: Any, images: Tensor, shape: str) -> Any:
    first = old[0] if isinstance(old, list) and old else old
    if not isinstance(first, Tensor):
        raise typer.BadParameter("this model takes no images", param_hint="--input")
    new = list(images) if isinstance(old, list) else images
    expected = first.ndim + 1 if isinstance(old, list) else first.ndim
    if images.ndim != expected:
        raise typer.BadParameter(
            f"{shape} has {images.ndim} dimensions, this model takes {expected}", param_hint="--input"
        )
    return new
