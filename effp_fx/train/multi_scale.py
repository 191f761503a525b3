"""Multi-scale training: a detector that resizes its images by itself is told another size for each batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from torch import nn

from effp_fx.errors import TrainingError
from effp_fx.train.loop import Batches

_MULTIPLE = 32
"""Pixels: sizes are multiples of the coarsest common stride, so that no map is cut off."""


def scaled_batches(batches: Batches, model: nn.Module, spread: float, seed: int) -> Iterator[Any]:
    """The batches; before each the model's size is drawn anew, and after the last it is what it was.

    Args:
        batches: of one epoch.
        model: with the `transform` of torchvision's detectors.
        spread: sizes from 1 - spread to 1 + spread of the model's own; 0: nothing is drawn.
        seed: of the sizes.

    Raises:
        TrainingError: the model has no size to change.
    """
    if not spread:
        yield from batches
        return
    transform: Any = getattr(model, "transform", None)
    if not hasattr(transform, "fixed_size") or not hasattr(transform, "min_size"):
        raise TrainingError(
            "this model has no size that could be changed",
            seen=f"{type(model).__name__} without the transform of torchvision's detectors",
            mend="leave multi_scale out",
        )
    own = transform.fixed_size, transform.min_size, transform.max_size
    draw = random.Random(seed)
    try:
        for batch in batches:
            _resize(transform, own, draw.uniform(1 - spread, 1 + spread))
            yield batch
    finally:
        transform.fixed_size, transform.min_size, transform.max_size = own


def _resize(transform: Any, own: tuple[Any, Any, Any], factor: float) -> None:
    fixed, least, most = own
    if fixed is not None:
        transform.fixed_size = tuple(_snapped(side * factor) for side in fixed)
    transform.min_size = tuple(_snapped(side * factor) for side in least)
    transform.max_size = _snapped(most * factor)


def _snapped(pixels: float) -> int:
    return max(_MULTIPLE, round(pixels / _MULTIPLE) * _MULTIPLE)
