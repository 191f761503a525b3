"""Pictures to pack with a model: the user's own, or some that are drawn from a seed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effp_fx.errors import ExportError
from effp_fx.export.handoff.board.runtime import images
from effp_fx.export.handoff.board.runtime.bundle import Failure

Picture = NDArray[np.uint8]
"""Height x width x 3, RGB."""
Given = str | os.PathLike[str] | Iterable[Any] | None
"""A folder, files, or arrays."""


def drawn(seed: int, height: int = 360, width: int = 480) -> Picture:
    """A gradient with some rectangles and ellipses, the same for the same seed."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)]
    corners = random.uniform(60, 200, (3, 3))
    canvas = corners[0] + down[..., None] * (corners[1] - corners[0]) + across[..., None] * (corners[2] - corners[0])
    for number in range(7):
        y, x = random.uniform(0.15, 0.85, 2)
        high, wide = random.uniform(0.06, 0.22, 2)
        v, u = (down - y) / high, (across - x) / wide
        inside = (np.abs(u) < 1) & (np.abs(v) < 1) if number % 2 else u * u + v * v < 1
        canvas[inside] = random.uniform(0, 255, 3)
    noise = random.normal(0, 4, canvas.shape)
    made: Picture = np.clip(np.rint(canvas + noise), 0, 255).astype(np.uint8)
    return made


def given(source: Given, most: int) -> list[Picture]:
    """The first `most` pictures of a folder, of files, or of arrays.

    Raises:
        ExportError: there is none, or one cannot be read.
    """
    try:
        return [_one(item) for item in _listed(source)[:most]]
    except Failure as error:
        raise ExportError("a picture cannot be read", seen=str(error)) from error


def _listed(source: Given) -> list[Any]:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise ExportError("the pictures are not there", where=str(path))
        return list(images.files(path)) if path.is_dir() else [path]
    found = list(source or ())
    if not found:
        raise ExportError("no pictures were given", expected="a folder, files, or arrays of uint8, height x width x 3")
    return found


def _one(item: Any) -> Picture:
    if isinstance(item, (str, os.PathLike)):
        read: Picture = images.read(Path(item))
        return read
    array = np.asarray(item)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        seen = f"{array.dtype} of shape {array.shape}"
        raise ExportError("this is no picture", seen=seen, expected="uint8, height x width x 3, RGB")
    return array
