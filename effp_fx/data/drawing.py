"""Draws one scene: clutter, objects over and under one another, what the sensor adds; boxes from the drawn masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from effp_fx.data.shapes import CLASSES, SHAPES, Polygon, Shape, pattern

_LARGEST = 2 / 3
"""Of the image's side; 200 px of 300."""
_FEWEST_PIXELS = 12
"""An object with fewer visible pixels is not annotated: nobody would find it."""
_DIFFICULT, _HIDDEN = 0.3, 0.05
"""Visible parts below which an object is marked difficult, and not annotated at all."""
_TRIES = 12
_HALF = [0] * 128 + [255] * 128
"""From coverage to all or nothing: a pixel is the object's where it covers half of it."""


@dataclass(frozen=True)
class Difficulty:
    """How hard a scene is; each number from 0 (clean) to 1 (as hard as it gets).

    Args:
        clutter: strokes and blobs in the background, little contrast.
        occlusion: how much of an object may be covered by others and by strokes across it.
        noise: sensor noise, blur, coarse JPEG.
    """

    clutter: float = 0.5
    occlusion: float = 0.5
    noise: float = 0.5


@dataclass(frozen=True)
class SceneObject:
    """One object: its class, the box of its visible pixels (pixel edges: x0, y0, x1, y1), how it is seen."""

    name: str
    box: tuple[int, int, int, int]
    difficult: bool
    truncated: bool
    occluded: bool
    area: int


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and what is in it."""

    image: Image.Image
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class _Placed:
    name: str
    box: tuple[int, int, int, int]
    pixels: int


def draw_scene(
    random: np.random.Generator, size: int, difficulty: Difficulty, *, smallest: int = 8, most: int = 6
) -> Scene:
    """Draw one scene.

    Args:
        random: all that is drawn by chance comes from here.
        size: side of the square image, pixels.
        difficulty: clutter, occlusion, noise.
        smallest: longer side of the smallest object, pixels; scales are log-uniform up to two thirds of the image.
        most: objects in an image, at most; at least one is tried.
    """
    canvas = _background(random, size, difficulty.clutter)
    ids = Image.new("L", (size, size), 0)
    placed: list[_Placed] = []
    for _ in range(int(random.integers(1, most + 1))):
        name = CLASSES[int(random.integers(len(CLASSES)))]
        box = _free_place(random, size, smallest, placed, difficulty.occlusion)
        if box is not None:
            placed.append(_draw_object(random, canvas, ids, name, box, len(placed) + 1, difficulty.clutter))
    _strokes_across(random, canvas, ids, placed, difficulty.occlusion)
    objects = _annotate(np.asarray(ids), placed)
    return Scene(_sensor(random, canvas, difficulty.noise), objects)


def jpeg_quality(random: np.random.Generator, noise: float) -> int:
    """Quality of the JPEG file: 95 at best, 40 at worst."""
    return int(random.integers(round(90 - 50 * noise), 96))


def _background(random: np.random.Generator, size: int, clutter: float) -> Image.Image:
    colours = random.uniform(20, 235, (2, 3)).astype(np.float32)
    angle = random.uniform(0, 2 * math.pi)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    mix = np.clip(0.5 + ramp[None, :] * math.cos(angle) + ramp[:, None] * math.sin(angle), 0, 1)[..., None]
    plain = colours[0] * (1 - mix) + colours[1] * mix
    cells = int(random.integers(3, 17))
    coarse = random.normal(128, 12 + 40 * clutter, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
    cloud = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    mixed = plain + np.asarray(cloud, dtype=np.float32) - 128
    canvas = Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
    brush = ImageDraw.Draw(canvas)
    for _ in range(int(random.poisson(2 + 14 * clutter))):
        _distractor(random, brush, size)
    return canvas


def _distractor(random: np.random.Generator, brush: ImageDraw.ImageDraw, size: int) -> None:
    """A stroke of one to three bends, an arc, or a blob with no regular outline."""
    colour = _colour(random)
    width = int(random.integers(1, max(2, size // 32) + 1))
    kind = random.uniform()
    if kind < 0.55:
        start = random.uniform(0, size, 2)
        steps = random.normal(0, size / 4, (int(random.integers(1, 4)), 2))
        points = np.concatenate([start[None], start + np.cumsum(steps, axis=0)])
        brush.line([(float(x), float(y)) for x, y in points], fill=colour, width=width, joint="curve")
        return
    x, y = random.uniform(0, size, 2)
    radius = random.uniform(size / 24, size / 5)
    if kind < 0.75:
        begin = random.uniform(0, 360)
        frame = [float(x - radius), float(y - radius), float(x + radius), float(y + radius)]
        brush.arc(frame, begin, begin + random.uniform(40, 150), fill=colour, width=width)
        return
    angles = np.sort(random.uniform(0, 2 * math.pi, int(random.integers(7, 12))))
    radii = radius * random.uniform(0.25, 1.0, len(angles))
    blob = [(float(x + r * math.cos(a)), float(y + r * math.sin(a))) for r, a in zip(radii, angles, strict=True)]
    brush.polygon(blob, fill=colour)


def _free_place(
    random: np.random.Generator, size: int, smallest: int, placed: list[_Placed], occlusion: float
) -> tuple[float, float, float] | None:
    """Centre and longer side of the next object; None where it would cover too much of what is there."""
    side = math.exp(random.uniform(math.log(smallest), math.log(max(_LARGEST * size, smallest + 1))))
    allowed = 0.02 + 0.55 * occlusion
    for _ in range(_TRIES):
        inner = 0.4 * side
        x, y = (random.uniform(min(inner, size / 2), max(size - inner, size / 2)) for _ in "xy")
        if all(_covered((x, y, side), other.box) <= allowed for other in placed):
            return x, y, side
    return None


def _covered(new: tuple[float, float, float], old: tuple[int, int, int, int]) -> float:
    """The part of the smaller of the two boxes that both share."""
    x, y, side = new
    wide = min(x + side / 2, old[2]) - max(x - side / 2, old[0])
    high = min(y + side / 2, old[3]) - max(y - side / 2, old[1])
    smaller = min(side * side, (old[2] - old[0]) * (old[3] - old[1]))
    return max(wide, 0.0) * max(high, 0.0) / max(smaller, 1.0)


def _draw_object(
    random: np.random.Generator,
    canvas: Image.Image,
    ids: Image.Image,
    name: str,
    place: tuple[float, float, float],
    number: int,
    clutter: float,
) -> _Placed:
    x, y, side = place
    shape = SHAPES[name]
    polygons, back = _posed(random, shape, side)
    extent = np.ptp(polygons[0], axis=0)
    wide, high = (math.ceil(value) + 2 for value in extent)
    left, top = round(x - wide / 2), round(y - high / 2)
    centre = np.array([wide / 2, high / 2])
    mask = _mask([polygon + centre for polygon in polygons], wide, high)
    patch = _filled(random, canvas, shape, (left, top, wide, high), back)
    if random.uniform() < 0.35:
        _outlined(random, patch, [polygon + centre for polygon in polygons], side)
    canvas.paste(patch, (left, top), mask)
    solid = mask.point(_HALF)
    ids.paste(number, (left, top), solid)
    return _Placed(name, (left, top, left + wide, top + high), solid.histogram()[255])


def _posed(random: np.random.Generator, shape: Shape, side: float) -> tuple[list[Polygon], NDArray[np.float64]]:
    """The polygons stretched, turned and scaled so that the longer side of their box is `side`; the way back."""
    stretch = math.exp(random.uniform(-0.22, 0.22))
    turn = math.radians(random.uniform(-shape.turn, shape.turn))
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    pose = rotation @ np.diag([stretch, 1 / stretch])
    turned = shape.outline @ pose.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    scale = side / (high - low).max()
    middle = (low + high) / 2
    polygons = [(polygon @ pose.T - middle) * scale for polygon in (shape.outline, *shape.holes)]
    return polygons, np.linalg.inv(pose) / scale


def _mask(polygons: list[Polygon], wide: int, high: int) -> Image.Image:
    """Coverage of each pixel, 0 to 255: drawn four (large ones two) times as large, then averaged."""
    finer = 4 if max(wide, high) < 64 else 2
    mask = Image.new("L", (wide * finer, high * finer), 0)
    brush = ImageDraw.Draw(mask)
    for index, polygon in enumerate(polygons):
        brush.polygon((polygon * finer - 0.5).ravel().tolist(), fill=0 if index else 255)
    return mask.reduce(finer)


def _filled(
    random: np.random.Generator,
    canvas: Image.Image,
    shape: Shape,
    frame: tuple[int, int, int, int],
    back: NDArray[np.float64],
) -> Image.Image:
    """A patch in the object's colours: shaded from one side to the other, striped or checkered where its class is."""
    left, top, wide, high = frame
    first = _colour_unlike(random, _colour_at(canvas, left + wide // 2, top + high // 2))
    x = np.arange(wide, dtype=np.float32) + 0.5 - wide / 2
    y = np.arange(high, dtype=np.float32) + 0.5 - high / 2
    slope = random.uniform(-30, 30, 2)
    shade = (slope[0] / wide * x)[None, :] + (slope[1] / high * y)[:, None]
    colours = np.broadcast_to(np.array(first, dtype=np.float32), (high, wide, 3))
    if shape.texture != "plain":
        second = np.array(_colour_unlike(random, first), dtype=np.float32)
        across = (back[0, 0] * x[None, :] + back[0, 1] * y[:, None]).astype(np.float32)
        along = (back[1, 0] * x[None, :] + back[1, 1] * y[:, None]).astype(np.float32)
        colours = np.where(pattern(shape.texture, across, along)[..., None], second, colours)
    return Image.fromarray((colours + shade[..., None]).clip(0, 255).astype(np.uint8))


def _outlined(random: np.random.Generator, patch: Image.Image, polygons: list[Polygon], side: float) -> None:
    brush, colour = ImageDraw.Draw(patch), _colour(random)
    width = max(1, round(side / 22))
    for polygon in polygons:
        points = [(float(x), float(y)) for x, y in polygon]
        brush.line([*points, points[0], points[1]], fill=colour, width=width)


def _strokes_across(
    random: np.random.Generator, canvas: Image.Image, ids: Image.Image, placed: list[_Placed], occlusion: float
) -> None:
    """Bars in front of some objects; what they cover belongs to nobody."""
    brush, cover = ImageDraw.Draw(canvas), ImageDraw.Draw(ids)
    for one in placed:
        if random.uniform() >= 0.7 * occlusion:
            continue
        x0, y0, x1, y1 = one.box
        side = max(x1 - x0, y1 - y0)
        x, y = random.uniform(x0, x1), random.uniform(y0, y1)
        angle, length = random.uniform(0, math.pi), side * random.uniform(0.6, 1.1)
        dx, dy = length * math.cos(angle), length * math.sin(angle)
        line = [float(x - dx), float(y - dy), float(x + dx), float(y + dy)]
        width = max(1, round(side * random.uniform(0.06, 0.22)))
        brush.line(line, fill=_colour(random), width=width)
        cover.line(line, fill=0, width=width)


def _annotate(ids: NDArray[np.uint8], placed: list[_Placed]) -> tuple[SceneObject, ...]:
    objects = []
    size = len(ids)
    for number, one in enumerate(placed, start=1):
        rows, columns = np.nonzero(ids == number)
        visible = len(rows) / max(one.pixels, 1)
        if len(rows) < _FEWEST_PIXELS or visible < _HIDDEN:
            continue
        box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        x0, y0, x1, y1 = one.box
        truncated = x0 < -1 or y0 < -1 or x1 > size + 1 or y1 > size + 1
        occluded = visible < 0.95 and not (truncated and visible > 0.9)
        objects.append(SceneObject(one.name, box, visible < _DIFFICULT, truncated, occluded, len(rows)))
    return tuple(objects)


def _sensor(random: np.random.Generator, canvas: Image.Image, noise: float) -> Image.Image:
    radius = random.uniform(-0.5, 0.2 + 1.0 * noise)
    if radius > 0.2:
        canvas = canvas.filter(ImageFilter.GaussianBlur(radius))
    pixels = np.asarray(canvas, dtype=np.float32)
    grain = random.standard_normal(pixels.shape, dtype=np.float32) * np.float32(random.uniform(0, 2 + 20 * noise))
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def _colour(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 256, 3).tolist()
    return red, green, blue


def _colour_at(canvas: Image.Image, x: int, y: int) -> tuple[int, int, int]:
    last = canvas.width - 1
    seen = canvas.getpixel((min(max(x, 0), last), min(max(y, 0), last)))
    assert isinstance(seen, tuple)  # an RGB canvas
    return int(seen[0]), int(seen[1]), int(seen[2])


def _colour_unlike(random: np.random.Generator, other: tuple[int, int, int]) -> tuple[int, int, int]:
    """The first of a few colours that stands out from another; the least alike of them where none does."""
    tried = [(int(red), int(green), int(blue)) for red, green, blue in random.integers(0, 256, (4, 3)).tolist()]
    apart = [sum(abs(a - b) for a, b in zip(colour, other, strict=True)) for colour in tried]
    return tried[next((index for index, distance in enumerate(apart) if distance >= 150), apart.index(max(apart)))]
