"""Opens a data set whatever its layout: finds out from what is on the disk, or says what it looked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from effp_fx.data.coco import coco_splits, open_coco
from effp_fx.data.dataset import DetectionDataset, Transform
from effp_fx.data.layouts import LAYOUTS, Layout
from effp_fx.data.problems import OnError
from effp_fx.data.voc import open_voc
from effp_fx.data.yolo import open_yolo, yaml_file, yolo_splits
from effp_fx.errors import DataError

PathLike = str | os.PathLike[str]

_LOOKED_FOR = {
    "voc": "Annotations/ and ImageSets/Main/ (VOC), here or in VOC2007/, VOC2012/, VOCdevkit/VOC2007/, ...",
    "coco": "annotations/instances_*.json or */_annotations.coco.json (COCO)",
    "yolo": "a data.yaml with names (YOLO)",
}


def open_dataset(
    path: PathLike,
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    on_error: OnError = "stop",
    transforms: Transform | None = None,
) -> DetectionDataset:
    """Open a split of a VOC, COCO or YOLO data set.

    Args:
        path: its folder, or a COCO .json or YOLO .yaml file; "voc:FOLDER", "coco:FOLDER", "yolo:FOLDER" to say which,
            where a folder has several layouts. A folder with VOC2007 and VOC2012 in it is both together (07+12).
        split: train, val, trainval, test, as the data set calls it.
        classes: names to keep, in this order; give the training set's to the others where they might differ.
        on_error: "stop" raises at the first problem; "skip" leaves the image or box out and counts it in `.report`.
        transforms: called with image and target.

    Raises:
        DataError: nothing is there, the layout is not recognised or not clear, the split is missing, it holds no image
            that can be used, or a problem was met.
    """
    found = read_split(path, split, classes=classes, on_error=on_error, transforms=transforms)
    if len(found) == 0:
        problems = ", ".join(f"{count} x {kind}" for kind, count in found.report.counts().items())
        seen = f"{problems}; first: {found.report.problems[0]}" if problems else "an empty list"
        raise DataError(f"the split {split!r} holds no image that can be used", where=os.fspath(path), seen=seen)
    return found


def read_split(
    path: PathLike,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    on_error: OnError = "stop",
    transforms: Transform | None = None,
) -> DetectionDataset:
    """`open_dataset` for those who want to know what is wrong: the split may turn out to hold no image."""
    layout, root = recognise(path)
    if layout == "voc":
        return open_voc(voc_roots(root), split, classes=classes, on_error=on_error, transforms=transforms)
    reader = open_coco if layout == "coco" else open_yolo
    return reader(root, split, classes=classes, on_error=on_error, transforms=transforms)


def splits(path: PathLike) -> list[str]:
    """The names of a data set's splits. Raises DataError where it is not recognised."""
    layout, root = recognise(path)
    if layout == "voc":
        lists = (root / "ImageSets" / "Main" for root in voc_roots(root))
        names = {file.stem for folder in lists for file in folder.glob("*.txt")}
        # VOC also has a list for each class of each split, such as car_train.
        return sorted(name for name in names if not re.fullmatch(r"\w+_(train|val|trainval|test)", name))
    if root.is_file():
        return [root.stem] if layout == "coco" else yolo_splits(root)
    return coco_splits(root) if layout == "coco" else yolo_splits(root)


def recognise(path: PathLike) -> tuple[Layout, Path]:
    """The layout of a data set and where it is. Raises DataError with what was looked for and what was seen."""
    layout, _, rest = os.fspath(path).partition(":")
    known: dict[str, Layout] = {name: name for name in LAYOUTS}
    if layout in known and rest:
        return known[layout], _there(Path(rest))
    root = _there(Path(path))
    tests: dict[Layout, Callable[[Path], bool]] = {"voc": _is_voc, "coco": _is_coco, "yolo": _is_yolo}
    found = [name for name, test in tests.items() if test(root)]
    if len(found) == 1:
        return found[0], root
    if found:
        mend = " or ".join(f'"{name}:{root}"' for name in found)
        raise DataError("the layout is not clear", where=str(root), seen=", ".join(found), mend=f"say {mend}")
    seen = ", ".join(sorted(child.name for child in root.iterdir())[:12]) if root.is_dir() else "a file"
    raise DataError(
        "the layout is not recognised",
        where=str(root),
        seen=seen or "an empty folder",
        expected="; or ".join(_LOOKED_FOR.values()),
    )


def voc_roots(root: Path) -> list[Path]:
    """The VOC folders at or below a folder, the years in their order."""
    if _is_voc_root(root):
        return [root]
    below = [path for path in _below(root) if _is_voc_root(path)]
    if not below:
        raise DataError("this is not a VOC folder", where=str(root), expected=_LOOKED_FOR["voc"])
    return below


def _there(path: Path) -> Path:
    if not path.exists():
        raise DataError("there is no such data set", where=str(path), mend="`effp-fx data scenes FOLDER` draws one")
    return path


def _is_voc_root(path: Path) -> bool:
    return (path / "Annotations").is_dir() and (path / "ImageSets" / "Main").is_dir()


def _is_voc(path: Path) -> bool:
    return path.is_dir() and (_is_voc_root(path) or any(map(_is_voc_root, _below(path))))


def _is_coco(path: Path) -> bool:
    return path.suffix == ".json" if path.is_file() else bool(coco_splits(path))


def _is_yolo(path: Path) -> bool:
    if path.is_file():
        return path.suffix in (".yaml", ".yml")
    try:
        return yaml_file(path).is_file()
    except DataError:
        return False


def _below(root: Path) -> list[Path]:
    return sorted((*root.glob("VOC2*"), *root.glob("VOCdevkit/VOC2*")))
