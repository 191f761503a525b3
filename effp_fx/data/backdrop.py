"""What surrounds the objects of a scene: the background before they are drawn, the sensor that sees it all after."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def background(random: np.random.Generator, size: int, clutter: float) -> Image.Image:
    """A gradient with clouds, strokes, arcs and blobs: size x size pixels, RGB; `clutter` from 0 to 1."""
    grey, chroma = random.uniform(20, 235, (2, 1)), random.uniform(-110, 110, (2, 3))
    colours = (grey + (0.15 + 0.85 * clutter) * chroma).astype(np.float32)
    angle = random.uniform(0, 2 * math.pi)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    mix = np.clip(0.5 + ramp[None, :] * math.cos(angle) + ramp[:, None] * math.sin(angle), 0, 1)[..., None]
    plain = colours[0] * (1 - mix) + colours[1] * mix
    cells = int(random.integers(3, 17))
    coarse = random.normal(128, 3 + 45 * clutter, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
    cloud = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    mixed = plain + np.asarray(cloud, dtype=np.float32) - 128
    canvas = Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
    brush = ImageDraw.Draw(canvas)
    for _ in range(int(random.poisson(0.5 + 14 * clutter))):
        _distractor(random, brush, size)
    return canvas


def _distractor(random: np.random.Generator, brush: ImageDraw.ImageDraw, size: int) -> None:
    """A stroke of one to three bends, an arc, or a blob with no regular outline."""
    colour = any_colour(random)
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


def sensor(random: np.random.Generator, canvas: Image.Image, noise: float) -> Image.Image:
    """The image with some blur and with Gaussian noise of up to 22 grey levels; `noise` from 0 to 1."""
    radius = random.uniform(-0.5, 0.2 + 1.0 * noise)
    if radius > 0.2:
        canvas = canvas.filter(ImageFilter.GaussianBlur(radius))
    pixels = np.asarray(canvas, dtype=np.float32)
    grain = random.standard_normal(pixels.shape, dtype=np.float32) * np.float32(random.uniform(0, 2 + 20 * noise))
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def jpeg_quality(random: np.random.Generator, noise: float) -> int:
    """Quality of the JPEG file: 95 at best, 40 at worst."""
    return int(random.integers(round(90 - 50 * noise), 96))


def any_colour(random: np.random.Generator) -> tuple[int, int, int]:
    """Any colour, 0 to 255."""
    red, green, blue = random.integers(0, 256, 3).tolist()
    return red, green, blue
