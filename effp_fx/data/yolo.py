"""Reads YOLO folders: data.yaml, images, and for each image a text file of `class cx cy width height` lines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from effp_fx.data.checks import checked_box, count, image_size
from effp_fx.data.dataset import Box, DetectionDataset, Record, Transform
from effp_fx.data.problems import DataReport, OnError, Problem
from effp_fx.errors import DataError

_IMAGES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_SPLITS = ("train", "val", "test")


def open_yolo(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    on_error: OnError = "stop",
    transforms: Transform | None = None,
) -> DetectionDataset:
    """Read a split of a YOLO folder as Ultralytics lays it out.

    An image without a label file is a negative, as there. `path:` in the YAML is taken from where the YAML lies.

    Args:
        root: the folder with its data.yaml, or the YAML file itself.
        split: a key of the YAML: a folder, a text file that lists images, or a list of these.
        classes: names to keep, in this order; None: all of the YAML. Others are unknown classes.
        on_error: "stop" raises at the first problem; "skip" leaves the image or box out and counts it in `.report`.
        transforms: called with image and target.

    Raises:
        DataError: the YAML is missing or says too little, the split is not there, or a problem was met.
    """
    report = DataReport(on_error)
    file = yaml_file(Path(root))
    content = read_yaml(file)
    theirs = _names(content["names"], file)
    names = tuple(classes) if classes is not None else tuple(dict.fromkeys(theirs.values()))
    labels = {number: names.index(name) + 1 for number, name in theirs.items() if name in names}
    records: list[Record] = []
    images = list(_distinct(_images(content, split, file), report))
    if images and not any(label_file(image).is_file() for image, _ in images):
        raise DataError(
            "no image of the split has labels", where=str(images[0][0].parent), expected=str(label_file(images[0][0]))
        )
    for image, _ in images:
        size = image_size(image, report)
        if size is None:
            continue
        boxes = tuple(_boxes(label_file(image), labels, theirs, size, report))
        records.append(Record(image, len(records), *size, boxes))
        count(report, boxes)
    return DetectionDataset(records, names, report, transforms)


def yolo_splits(root: Path) -> list[str]:
    """The splits that the YAML of a folder names."""
    content = read_yaml(yaml_file(root))
    return [split for split in _SPLITS if content.get(split)]


def yaml_file(root: Path) -> Path:
    """The YAML of a folder: data.yaml, or the only one that has `names`. Raises DataError where there is none."""
    if root.is_file():
        return root
    found = [path for path in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))) if _says_names(path)]
    usual = [path for path in found if path.stem == "data"]
    if len(usual or found) == 1:
        return (usual or found)[0]
    seen = ", ".join(path.name for path in found) or "no YAML with names in it"
    raise DataError(
        "the folder has no data.yaml", where=str(root), seen=seen, expected="one YAML with names and splits"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a data.yaml. Raises DataError where it is no YAML, with the line, or has no names."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        seen = getattr(error, "problem", None) or str(error)
        raise DataError("this is not YAML", where=where, seen=seen) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the YAML cannot be read", where=str(path), seen=str(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("names"), dict | list):
        raise DataError("the YAML does not name the classes", where=str(path), expected="names: {0: car, 1: person}")
    return content


def label_file(image: Path) -> Path:
    """Where the labels of an image are: the last folder called images becomes labels; else beside the image."""
    parts = list(image.parts[:-1])
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts, f"{image.stem}.txt")


def _says_names(path: Path) -> bool:
    try:
        return bool(read_yaml(path))
    except DataError:
        return False


def _names(names: dict[Any, Any] | list[Any], file: Path) -> dict[int, str]:
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    try:
        return {int(number): str(name) for number, name in pairs}
    except (TypeError, ValueError) as error:
        raise DataError("the YAML does not number the classes", where=str(file), seen=f"names: {names}") from error


def _images(content: dict[str, Any], split: str, file: Path) -> Iterator[tuple[Path, str]]:
    """The images of a split, each with the place that named it."""
    named = content.get(split)
    if not named:
        has = [name for name in _SPLITS if content.get(name)]
        raise DataError(f"there is no split {split!r}", where=str(file), seen=f"splits {', '.join(has) or 'none'}")
    base = file.parent / str(content.get("path") or ".")
    for place in [named] if isinstance(named, str) else named:
        yield from _listed(_existing(base, str(place), file))


def _existing(base: Path, place: str, file: Path) -> Path:
    # Roboflow writes ../train/images where it means train/images.
    tried = [base / place, file.parent / place, base / place.removeprefix("../")]
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        raise DataError("the images are not where the YAML says", where=str(file), seen=place, expected=str(tried[0]))
    return found


def _listed(place: Path) -> Iterator[tuple[Path, str]]:
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.suffix.lower() in _IMAGES)
        yield from ((path, str(path)) for path in files)
        return
    for line, text in enumerate(place.read_text(encoding="utf-8").splitlines(), start=1):
        if text.strip():
            yield place.parent / text.strip(), f"{place}:{line}"


def _distinct(images: Iterator[tuple[Path, str]], report: DataReport) -> Iterator[tuple[Path, str]]:
    seen: dict[Path, str] = {}
    for image, where in images:
        key = Path(os.path.normpath(image))
        if key in seen:
            report.note(Problem("duplicated id", where, f"{image}, as in {seen[key]}", "one of them kept"))
            continue
        seen[key] = where
        yield key, where


def _boxes(
    path: Path, labels: dict[int, int], names: dict[int, str], size: tuple[int, int], report: DataReport
) -> Iterator[Box]:
    if not path.is_file():
        return
    for line, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        where = f"{path}:{line}"
        if not text.strip():
            continue
        numbers = _numbers(text)
        if numbers is None:
            report.note(Problem("malformed annotation", where, text[:80], "box left out"))
        elif numbers[0] not in labels:
            seen = names.get(int(numbers[0]), f"class {numbers[0]:g} of {len(names)}")
            report.note(Problem("unknown class", where, seen, "box left out"))
        else:
            box = checked_box(_box(numbers, labels[int(numbers[0])], size), size, where, report)
            if box is not None:
                yield box


def _numbers(text: str) -> list[float] | None:
    """A class and four numbers, or a class and the corners of a polygon; None for anything else."""
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        return None
    whole = bool(numbers) and numbers[0].is_integer()
    return numbers if whole and (len(numbers) == 5 or (len(numbers) >= 7 and len(numbers) % 2 == 1)) else None


def _box(numbers: list[float], label: int, size: tuple[int, int]) -> Box:
    width, height = size
    if len(numbers) == 5:
        x, y, wide, high = numbers[1:]
        edges = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
    else:
        across, down = numbers[1::2], numbers[2::2]
        edges = (min(across), min(down), max(across), max(down))
    return Box(label, edges[0] * width, edges[1] * height, edges[2] * width, edges[3] * height)
