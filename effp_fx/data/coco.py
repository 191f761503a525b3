"""Reads COCO folders: annotations/instances_SPLIT.json beside the images, or _annotations.coco.json among them."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from effp_fx.data.checks import checked_box, count, image_size
from effp_fx.data.dataset import Box, DetectionDataset, Record, Transform
from effp_fx.data.problems import DataReport, OnError, Problem
from effp_fx.errors import DataError

BESIDE = "_annotations.coco.json"
"""What Roboflow calls the annotations that lie among the images of a split."""
_PARTS = ("images", "annotations", "categories")
_TABLES = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id", "bbox"), "categories": ("id",)}


def open_coco(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    on_error: OnError = "stop",
    transforms: Transform | None = None,
) -> DetectionDataset:
    """Read a split of a COCO folder.

    Labels are 1, 2, ... in the order of the category ids, which may have gaps in the file. A crowd is a difficult
    object. pycocotools, which scores them, reads such files too, but stops with a bare KeyError at the first fault.

    Args:
        root: the folder, or the JSON file itself with its images beside it.
        split: train finds instances_train.json and, where that is absent, the one file instances_train*.json.
        classes: names to keep, in this order; None: all categories. Others are unknown classes.
        on_error: "stop" raises at the first problem; "skip" leaves the image or box out and counts it in `.report`.
        transforms: called with image and target.

    Raises:
        DataError: the file is not there or not COCO's, or a problem was met.
    """
    report = DataReport(on_error)
    path = annotation_file(Path(root), split)
    content = _content(path)
    category = _categories(content["categories"], path, report)
    names = tuple(classes) if classes is not None else tuple(dict.fromkeys(category.values()))
    labels = {name: label for label, name in enumerate(names, start=1)}
    of_image = _by_image(content, path, report)
    folders = _image_folders(Path(root), path, split)
    records: list[Record] = []
    for row in _distinct(content["images"], "images", path, report):
        image = next((found for folder in folders if (found := folder / row["file_name"]).is_file()), None)
        size = _size(image or folders[0] / row["file_name"], row, path, report)
        if size is None or image is None:
            continue
        boxes = [_box(one, category, labels, size, path, report) for one in of_image[row["id"]]]
        key = row["id"] if isinstance(row["id"], int) else len(records)
        records.append(Record(image, key, *size, tuple(box for box in boxes if box is not None)))
        count(report, records[-1].boxes)
    return DetectionDataset(records, names, report, transforms)


def coco_splits(root: Path) -> list[str]:
    """The splits of a COCO folder, by the names of its files."""
    named = (path.stem.removeprefix("instances_") for path in sorted((root / "annotations").glob("instances_*.json")))
    beside = (path.parent.name for path in sorted(root.glob(f"*/{BESIDE}")))
    return [*named, *beside]


def annotation_file(root: Path, split: str) -> Path:
    """The JSON file of a split. Raises DataError, with what was looked for."""
    if root.is_file():
        return root
    exact = (root / "annotations" / f"instances_{split}.json", root / split / BESIDE)
    found = [path for path in exact if path.is_file()]
    found = found or sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"there is no split {split!r}" if not found else f"the split {split!r} is not clear",
        where=str(root),
        seen=f"splits {', '.join(coco_splits(root)) or 'none'}",
        expected=" or ".join(str(path) for path in exact),
    )


def _image_folders(root: Path, path: Path, split: str) -> list[Path]:
    if path.name == BESIDE or root.is_file():
        return [path.parent, path.parent / "images"]
    name = path.stem.removeprefix("instances_")
    return [root / name, root / "images" / name, root / split, root / "images" / split, root / "images", root]


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError("malformed annotation", where=f"{path}:{error.lineno}", seen=error.msg) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the annotations cannot be read", where=str(path), seen=str(error)) from error
    missing = [part for part in _PARTS if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if missing:
        raise DataError(
            "this is not a COCO detection file",
            where=str(path),
            seen=f"no list of {', '.join(missing)}",
            expected=f"lists of {', '.join(_PARTS)}",
        )
    return dict(content)


def _distinct(rows: Iterable[Any], table: str, path: Path, report: DataReport) -> Iterable[dict[str, Any]]:
    """The rows that have what they need, each id once."""
    seen = set()
    for number, row in enumerate(rows):
        where = f"{path}, {table}[{number}]"
        lacks = [key for key in _TABLES[table] if not isinstance(row, dict) or row.get(key) is None]
        if lacks or not all(isinstance(row[key], int | str | list) for key in _TABLES[table]):
            report.note(Problem("malformed annotation", where, f"{', '.join(lacks)} missing", _OUTCOME[table]))
            continue
        key = row.get("id")
        if key is not None and key in seen:
            report.note(Problem("duplicated id", where, f"id {key}", "one of them kept"))
            continue
        seen.add(key)
        yield row


_OUTCOME: dict[str, Any] = {"images": "image left out", "annotations": "box left out", "categories": "box left out"}


def _categories(rows: Sequence[Any], path: Path, report: DataReport) -> dict[int, str]:
    known = {row["id"]: str(row.get("name", row["id"])) for row in _distinct(rows, "categories", path, report)}
    return {key: known[key] for key in sorted(known)}


def _by_image(content: dict[str, Any], path: Path, report: DataReport) -> defaultdict[Any, list[dict[str, Any]]]:
    images = {row["id"] for row in content["images"] if isinstance(row, dict) and "id" in row}
    grouped: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in _distinct(content["annotations"], "annotations", path, report):
        if row["image_id"] not in images:
            where = f"{path}, annotation {row.get('id')}"
            seen = f"image_id {row['image_id']}, which is no image"
            report.note(Problem("malformed annotation", where, seen, "box left out"))
            continue
        grouped[row["image_id"]].append(row)
    return grouped


def _size(image: Path, row: dict[str, Any], path: Path, report: DataReport) -> tuple[int, int] | None:
    size = image_size(image, report)
    told = (row.get("width"), row.get("height"))
    if size is None or None in told or told == size:
        return size
    seen = f"{told[0]} x {told[1]} in the annotations, {size[0]} x {size[1]} in {image.name}"
    report.note(Problem("wrong image size", f"{path}, image {row['id']}", seen))
    return None


def _box(
    row: dict[str, Any],
    category: dict[int, str],
    labels: dict[str, int],
    size: tuple[int, int],
    path: Path,
    report: DataReport,
) -> Box | None:
    where = f"{path}, annotation {row.get('id')}"
    name = category.get(row["category_id"])
    if name not in labels or name is None:
        seen = f"category_id {row['category_id']}" if name is None else name
        report.note(Problem("unknown class", where, seen, "box left out"))
        return None
    try:
        x, y, wide, high = (float(value) for value in row["bbox"])
        area = float(row["area"]) if row.get("area") is not None else None
    except (TypeError, ValueError):
        seen = f"bbox {row['bbox']}, area {row.get('area')}"
        report.note(Problem("malformed annotation", where, seen, "box left out"))
        return None
    box = Box(labels[name], x, y, x + wide, y + high, bool(row.get("iscrowd", 0)), area)
    return checked_box(box, size, where, report)
