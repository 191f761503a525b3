"""The objects that scenes are made of: for each class an outline, holes and a texture, as polygons about the origin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]
"""Corners [n, 2], x and y, within about -1 to 1."""
Texture = Literal["plain", "stripes", "checks"]

_CIRCLE = 40
"""Corners of what stands for a circle: at 200 px the polygon is within 0.4 px of it."""


@dataclass(frozen=True, eq=False)
class Shape:
    """What a class looks like, before scale, rotation and colour.

    Args:
        outline: the outer edge.
        holes: what is cut out of it.
        texture: how it is filled.
        turn: rotation jitter, degrees to either side; a glyph turned too far would be another one.
    """

    outline: Polygon
    holes: tuple[Polygon, ...] = ()
    texture: Texture = "plain"
    turn: float = 180.0


def _regular(corners: int, inner: float = 1.0) -> Polygon:
    """A regular polygon with one corner up; every second corner at `inner` where that is not 1 (a star)."""
    radius = np.where(np.arange(corners) % 2 == 0, 1.0, inner)
    angle = 2 * math.pi * np.arange(corners) / corners - math.pi / 2
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _crescent(shift: float = 0.55, inner: float = 0.85) -> Polygon:
    """The unit disc without the disc of radius `inner` about (`shift`, 0)."""
    meet_x = (1 - inner**2 + shift**2) / (2 * shift)
    meet_y = math.sqrt(1 - meet_x**2)
    start, stop = math.atan2(meet_y, meet_x), 2 * math.pi - math.atan2(meet_y, meet_x)
    outer = np.linspace(start, stop, 32)
    begin = math.atan2(meet_y, meet_x - shift)
    bite = np.linspace(2 * math.pi - begin, begin, 24)
    outside = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    inside = np.stack([shift + inner * np.cos(bite), inner * np.sin(bite)], axis=1)
    return np.concatenate([outside, inside])


def _corners(*points: tuple[float, float]) -> Polygon:
    return np.array(points, dtype=np.float64)


def _plus(arm: float = 0.34) -> Polygon:
    a = arm
    return _corners(
        *[(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)],
        *[(a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)],
    )


def _letter_e() -> Polygon:
    return _corners(
        *[(-0.7, -1), (0.7, -1), (0.7, -0.6), (-0.25, -0.6), (-0.25, -0.2), (0.5, -0.2)],
        *[(0.5, 0.2), (-0.25, 0.2), (-0.25, 0.6), (0.7, 0.6), (0.7, 1), (-0.7, 1)],
    )


def _letter_k() -> Polygon:
    return _corners(
        *[(-0.8, -1), (-0.35, -1), (-0.35, -0.2), (0.3, -1), (0.85, -1), (0.05, 0)],
        *[(0.85, 1), (0.3, 1), (-0.35, 0.2), (-0.35, 1), (-0.8, 1)],
    )


_SQUARE = _corners((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))

SHAPES: dict[str, Shape] = {
    "disc": Shape(_regular(_CIRCLE)),
    "ring": Shape(_regular(_CIRCLE), holes=(0.55 * _regular(_CIRCLE),)),
    "triangle": Shape(_regular(3)),
    "square": Shape(_SQUARE),
    "hexagon": Shape(_regular(6)),
    "star": Shape(_regular(10, inner=0.42)),
    "cross": Shape(_plus()),
    "crescent": Shape(_crescent()),
    "letter_e": Shape(_letter_e(), turn=35.0),
    "letter_k": Shape(_letter_k(), turn=35.0),
    "striped_disc": Shape(_regular(_CIRCLE), texture="stripes"),
    "checkered_square": Shape(_SQUARE, texture="checks"),
}
"""Class name -> shape, in the order of the labels, which begin at 1."""

CLASSES: tuple[str, ...] = tuple(SHAPES)


def pattern(texture: Texture, across: NDArray[np.float32], along: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which pixels take the second colour; `across` and `along` are the object's own axes, -1 to 1."""
    stripes = np.mod(np.floor(across * 3.0), 2) == 0
    if texture == "stripes":
        return np.asarray(stripes)
    return np.asarray(stripes != (np.mod(np.floor(along * 3.0), 2) == 0))
