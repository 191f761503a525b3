"""What every reader checks of an image and of a box before it believes them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from effp_fx.data.dataset import Box
from effp_fx.data.problems import DataReport, Problem

_SLACK = 1.0
"""Pixels that a box may leave the image by without a word: writers differ in whether pixels count from 0 or from 1."""
_JPEG_BEGIN, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_TAIL = 4096
"""Cameras add bytes after the end mark of a JPEG."""


def image_size(path: Path, report: DataReport) -> tuple[int, int] | None:
    """Width and height from the header of an image; None, and noted, where it is missing, cut short or no image.

    Pixels are not decoded: data that is garbled in between shows only then.
    """
    if not path.is_file():
        report.note(Problem("missing image", str(path), "no such file"))
        return None
    try:
        with Image.open(path) as image:
            size = image.size
        with open(path, "rb") as file:
            begin = file.read(2)
            file.seek(max(path.stat().st_size - _TAIL, 0))
            cut = begin == _JPEG_BEGIN and _JPEG_END not in file.read()
    except Exception as error:  # Pillow's decoders raise what they like: SyntaxError, struct.error, their own
        text = " ".join(str(error).split())[:200]
        report.note(Problem("corrupt image", str(path), f"{type(error).__name__}: {text}"))
        return None
    if cut:
        report.note(Problem("corrupt image", str(path), "a JPEG without its end mark: the file is cut short"))
        return None
    return size


def checked_box(box: Box, size: tuple[int, int], where: str, report: DataReport) -> Box | None:
    """The box within the image of this width and height; None, and noted, where nothing of it is left."""
    width, height = size
    corners = (box.x0, box.y0, box.x1, box.y1)
    seen = f"x {box.x0:g} to {box.x1:g}, y {box.y0:g} to {box.y1:g}, in an image of {width} x {height}"
    if not (box.x1 > box.x0 and box.y1 > box.y0 and all(abs(value) < 1e9 for value in corners)):
        report.note(Problem("box without area", where, seen, "box left out"))
        return None
    x0, y0, x1, y1 = max(box.x0, 0.0), max(box.y0, 0.0), min(box.x1, float(width)), min(box.y1, float(height))
    if x1 <= x0 or y1 <= y0:
        report.note(Problem("box outside the image", where, seen, "box left out"))
        return None
    if max(abs(a - b) for a, b in zip(corners, (x0, y0, x1, y1), strict=True)) > _SLACK:
        report.note(Problem("box outside the image", where, seen, "box clipped"))
    return Box(box.label, x0, y0, x1, y1, box.difficult, box.area)


def count(report: DataReport, boxes: tuple[Box, ...]) -> None:
    """Add an image that is taken, with its boxes, to the report."""
    report.images += 1
    report.boxes += len(boxes)
    report.difficult += sum(box.difficult for box in boxes)
    report.empty += not boxes
