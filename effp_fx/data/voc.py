"""Reads VOC folders (JPEGImages, Annotations, ImageSets/Main), one or several joined as in the 07+12 protocol."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.parsers import expat

from effp_fx.data.checks import checked_box, count, image_size
from effp_fx.data.dataset import Box, DetectionDataset, Record, Transform
from effp_fx.data.problems import DataReport, OnError, Problem
from effp_fx.errors import DataError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The classes of PASCAL VOC 2007 to 2012, in its own order."""

_LINE = "line"
"""The attribute in which the parser leaves an element's line; no VOC element has attributes."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def open_voc(
    roots: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    on_error: OnError = "stop",
    transforms: Transform | None = None,
) -> DetectionDataset:
    """Read a split of one or several VOC folders.

    VOC counts pixels from 1 and its last pixel is inside: xmin - 1, ymin - 1, xmax, ymax are the pixel edges that boxes
    hold here (torchvision's VOCDetection hands out the text as it stands). Objects without <difficult> are not.

    Args:
        roots: folders with Annotations in them; of several, those are read that have the split.
        split: the name of a list in ImageSets/Main: train, val, trainval, test.
        classes: names; None: those of PASCAL VOC where the folders are called VOC2007, VOC2012, else all names in
            Annotations, whatever the split, in alphabetical order.
        on_error: "stop" raises at the first problem; "skip" leaves the image or box out and counts it in `.report`.
        transforms: called with image and target.

    Raises:
        DataError: no folder has the split, or a problem was met.
    """
    folders = [Path(root) for root in ([roots] if isinstance(roots, str | os.PathLike) else roots)]
    report = DataReport(on_error)
    listed = [(root, stem) for root in folders for stem in _listed(root, split, report)]
    if not any(_list_file(root, split).is_file() for root in folders):
        looked = ", ".join(str(_list_file(root, split)) for root in folders)
        has = sorted({path.stem for root in folders for path in (root / "ImageSets" / "Main").glob("*.txt")})
        raise DataError(
            f"there is no split {split!r}", where=looked, seen=f"splits {', '.join(has)}" if has else "no lists at all"
        )
    parsed = [(root, stem, _parse(root / "Annotations" / f"{stem}.xml", report)) for root, stem in listed]
    names = tuple(classes) if classes is not None else _class_names(folders, [tree for _, _, tree in parsed])
    records: list[Record] = []
    for root, stem, tree in parsed:
        record = None if tree is None else _record(root, stem, tree, names, len(records), report)
        if record is not None:
            records.append(record)
            count(report, record.boxes)
    return DetectionDataset(records, names, report, transforms)


def _list_file(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _listed(root: Path, split: str, report: DataReport) -> Iterable[str]:
    """The stems in a list, each once; the first word of a line, for lists of one class have a second."""
    path = _list_file(root, split)
    seen: dict[str, int] = {}
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), start=1):
        stem = text.split()[0] if text.strip() else ""
        if stem in seen:
            where = f"{path}:{line}"
            report.note(Problem("duplicated id", where, f"{stem}, as in line {seen[stem]}", "one of them kept"))
        elif stem:
            seen[stem] = line
    return seen


def _parse(path: Path, report: DataReport) -> ElementTree.Element | None:
    if not path.is_file():
        report.note(Problem("missing annotation", str(path), "no such file"))
        return None
    try:
        return _tree(path.read_bytes())
    except expat.ExpatError as error:
        report.note(Problem("malformed annotation", f"{path}:{error.lineno}", str(error)))
        return None


def _tree(text: bytes) -> ElementTree.Element:
    """The XML with each element's line as its attribute; ElementTree's own parser does not give lines away."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()

    def start(tag: str, _: dict[str, str]) -> None:
        builder.start(tag, {_LINE: str(parser.CurrentLineNumber)})

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(text, True)
    return builder.close()


def _class_names(roots: Sequence[Path], trees: Sequence[ElementTree.Element | None]) -> tuple[str, ...]:
    found = {name for tree in trees if tree is not None for name in _names(tree)}
    if all(re.fullmatch(r"VOC20\d\d", root.name) for root in roots) and found <= set(VOC_CLASSES):
        return VOC_CLASSES
    quiet = DataReport("skip")  # the other splits' problems are not this one's
    for root in roots:
        for path in sorted((root / "Annotations").glob("*.xml")):
            tree = _parse(path, quiet)
            found.update(_names(tree) if tree is not None else ())
    return tuple(sorted(found))


def _names(tree: ElementTree.Element) -> list[str]:
    return [name for thing in tree.iterfind("object") if (name := (thing.findtext("name") or "").strip())]


def _record(
    root: Path, stem: str, tree: ElementTree.Element, classes: Sequence[str], image_id: int, report: DataReport
) -> Record | None:
    annotation = root / "Annotations" / f"{stem}.xml"
    images = root / "JPEGImages"
    found = (path for suffix in _SUFFIXES if (path := images / f"{stem}{suffix}").is_file())
    image = next(found, images / f"{stem}.jpg")
    size = image_size(image, report)
    if size is None:
        return None
    stated = tree.find("size")
    told = (0, 0) if stated is None else (_whole(stated, "width"), _whole(stated, "height"))
    if stated is not None and any(told) and told != size:  # writers that do not know the size say 0
        where = f"{annotation}:{stated.get(_LINE)}"
        seen = f"{told[0]} x {told[1]} in the annotation, {size[0]} x {size[1]} in {image.name}"
        report.note(Problem("wrong image size", where, seen))
        return None
    boxes = (_box(thing, classes, size, annotation, report) for thing in tree.iterfind("object"))
    return Record(image, image_id, *size, tuple(box for box in boxes if box is not None))


def _whole(parent: ElementTree.Element, tag: str) -> int:
    text = (parent.findtext(tag) or "").strip()
    return int(text) if text.isdigit() else 0


def _box(
    thing: ElementTree.Element, classes: Sequence[str], size: tuple[int, int], path: Path, report: DataReport
) -> Box | None:
    where = f"{path}:{thing.get(_LINE)}"
    name = (thing.findtext("name") or "").strip()
    frame = thing.find("bndbox")
    try:
        corners = [float(frame.findtext(tag) or "") for tag in _CORNERS] if frame is not None else []
    except ValueError:
        corners = []
    if not name or not corners:
        seen = "an object without a name" if not name else "an object without four numbers in its bndbox"
        report.note(Problem("malformed annotation", where, seen, "box left out"))
        return None
    if name not in classes:
        report.note(Problem("unknown class", where, name, "box left out"))
        return None
    x0, y0, x1, y1 = corners
    difficult = (thing.findtext("difficult") or "0").strip() == "1"
    box = Box(classes.index(name) + 1, x0 - 1, y0 - 1, x1, y1, difficult)
    where = where if frame is None else f"{path}:{frame.get(_LINE)}"
    return checked_box(box, size, where, report)


_CORNERS = ("xmin", "ymin", "xmax", "ymax")
