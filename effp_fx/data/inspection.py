"""Looks a whole data set through, every image decoded, and says what is in it and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from effp_fx.data.checks import count
from effp_fx.data.dataset import DetectionDataset, read_image
from effp_fx.data.problems import DataReport, Problem
from effp_fx.data.sources import PathLike, read_split, recognise, splits
from effp_fx.errors import DataError


@dataclass(frozen=True)
class SplitCheck:
    """What one split holds.

    Args:
        split: its name.
        report: its counts and its problems.
        per_class: class name -> boxes, in the order of the labels, classes without a box included.
    """

    split: str
    report: DataReport
    per_class: dict[str, int]


def check_dataset(
    path: PathLike,
    only: Sequence[str] = (),
    *,
    classes: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[SplitCheck, ...]:
    """Read all splits (of VOC's, trainval is left out where train and val are there), or only those named.

    Args:
        path: as of `open_dataset`.
        only: names of splits.
        classes: as of `open_dataset`: other names are problems.
        progress: told how far it is.

    Raises:
        DataError: the data set is not recognised, or has no such split; what is wrong inside is in the reports.
    """
    layout, _ = recognise(path)
    there = splits(path)
    wanted = list(only) or [name for name in there if name != "trainval" or not {"train", "val"} <= set(there)]
    if not wanted:
        raise DataError("the data set has no splits", where=str(path), seen=f"the layout of {layout}")
    checks = []
    for split in wanted:
        dataset = read_split(path, split, classes=classes, on_error="skip")
        checks.append(_look_through(dataset, split, progress or (lambda _: None)))
    return tuple(checks)


def _look_through(dataset: DetectionDataset, split: str, progress: Callable[[str], None]) -> SplitCheck:
    report = DataReport("skip", problems=list(dataset.report.problems))
    met: Counter[int] = Counter()
    for number, record in enumerate(dataset.records, start=1):
        if number % 500 == 0 or number == len(dataset):
            progress(f"decode {split}: {number} of {len(dataset)}")
        if not _decodes(record.image, report):
            continue
        count(report, record.boxes)
        met.update(box.label for box in record.boxes)
    per_class = {name: met[label] for label, name in enumerate(dataset.classes, start=1)}
    return SplitCheck(split, report, per_class)


def _decodes(path: Path, report: DataReport) -> bool:
    try:
        read_image(path)
    except DataError as error:
        report.note(Problem("corrupt image", str(path), error.seen or ""))
        return False
    return True
