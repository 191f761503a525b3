"""Writes a data set in the three layouts that detectors are trained from: VOC, COCO and YOLO."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from effp_fx.data.drawing import SceneObject

Layout = Literal["voc", "coco", "yolo"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class Drawn:
    """One image that was written: the stem of its file's name, its side in pixels, what is in it."""

    stem: str
    size: int
    objects: tuple[SceneObject, ...]


def image_folder(root: Path, layout: Layout, split: str) -> Path:
    """Where the images of a split belong."""
    return root / {"voc": "JPEGImages", "coco": split, "yolo": f"images/{split}"}[layout]


def write_annotations(
    root: Path, layout: Layout, splits: Mapping[str, Sequence[Drawn]], classes: Sequence[str]
) -> None:
    """Write everything of a data set but its images."""
    {"voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo}[layout](root, splits, classes)


def _write_voc(root: Path, splits: Mapping[str, Sequence[Drawn]], classes: Sequence[str]) -> None:
    annotations, lists = root / "Annotations", root / "ImageSets" / "Main"
    annotations.mkdir()
    lists.mkdir(parents=True)
    both = [*splits.get("train", ()), *splits.get("val", ())]
    for split, drawn in {**splits, "trainval": both}.items():
        _write(lists / f"{split}.txt", "".join(f"{one.stem}\n" for one in drawn))
    for drawn in splits.values():
        for one in drawn:
            _write(annotations / f"{one.stem}.xml", _voc_xml(one))


def _voc_xml(one: Drawn) -> str:
    """VOC counts pixels from 1 and means the last one to be inside."""
    lines = [
        "<annotation>",
        "\t<folder>scenes</folder>",
        f"\t<filename>{one.stem}.jpg</filename>",
        f"\t<size><width>{one.size}</width><height>{one.size}</height><depth>3</depth></size>",
        "\t<segmented>0</segmented>",
    ]
    for thing in one.objects:
        x0, y0, x1, y1 = thing.box
        lines += [
            "\t<object>",
            f"\t\t<name>{thing.name}</name>",
            "\t\t<pose>Unspecified</pose>",
            f"\t\t<truncated>{thing.truncated:d}</truncated>",
            f"\t\t<occluded>{thing.occluded:d}</occluded>",
            f"\t\t<difficult>{thing.difficult:d}</difficult>",
            f"\t\t<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _write_coco(root: Path, splits: Mapping[str, Sequence[Drawn]], classes: Sequence[str]) -> None:
    (root / "annotations").mkdir()
    categories = [{"id": index, "name": name, "supercategory": "scene"} for index, name in enumerate(classes, start=1)]
    for split, drawn in splits.items():
        images = [
            {"id": index, "file_name": f"{one.stem}.jpg", "width": one.size, "height": one.size}
            for index, one in enumerate(drawn, start=1)
        ]
        things = [(index, thing) for index, one in enumerate(drawn, start=1) for thing in one.objects]
        annotations = [
            {"id": number, "image_id": index, "category_id": classes.index(thing.name) + 1, **_coco_box(thing)}
            for number, (index, thing) in enumerate(things, start=1)
        ]
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        _write(root / "annotations" / f"instances_{split}.json", text + "\n")


def _coco_box(thing: SceneObject) -> dict[str, object]:
    x0, y0, x1, y1 = thing.box
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": thing.area, "iscrowd": int(thing.difficult)}


def _write_yolo(root: Path, splits: Mapping[str, Sequence[Drawn]], classes: Sequence[str]) -> None:
    """YOLO has no word for a difficult object: those are left out."""
    for split, drawn in splits.items():
        labels = root / "labels" / split
        labels.mkdir(parents=True)
        for one in drawn:
            lines = [_yolo_line(thing, one.size, classes) for thing in one.objects if not thing.difficult]
            _write(labels / f"{one.stem}.txt", "".join(lines))
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(classes))
    places = "".join(f"{split}: images/{split}\n" for split in splits)
    # No `path:`: Ultralytics takes a relative one from where it is started, and without one from where the file lies.
    _write(root / "data.yaml", f"{places}names:\n{names}")


def _yolo_line(thing: SceneObject, size: int, classes: Sequence[str]) -> str:
    x0, y0, x1, y1 = (value / size for value in thing.box)
    place = f"{(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}"
    return f"{classes.index(thing.name)} {place}\n"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
