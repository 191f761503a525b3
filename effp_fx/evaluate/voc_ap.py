"""Average precision as in PASCAL VOC: which detections hit; area under precision over recall, or 11 points of it.

No library that is kept offers both measures with the difficult objects left out as the devkit does, so they are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Image = tuple[Floats, Floats, NDArray[np.int64], Floats, NDArray[np.int64], NDArray[np.bool_]]
"""Found boxes [n, 4], scores [n], labels [n]; boxes that are there [m, 4], labels [m], difficult [m]."""


@dataclass(frozen=True, eq=False)
class Matched:
    """The detections of one class, highest score first: which hit; those on difficult objects are left out.

    Args:
        hits: bool [n].
        objects: how many there were to find.
    """

    hits: NDArray[np.bool_]
    objects: int


def match_class(images: Sequence[Image], label: int, threshold: float = 0.5) -> Matched:
    """Match the detections of a class as the VOC devkit does (Everingham et al. 2010, section 4.2).

    A detection is of the object with which it overlaps most; it hits where that is at least the threshold and nobody
    with a higher score took the object before; on a difficult object it does not count. Overlap is intersection over
    union of pixel edges; the devkit counts whole pixels (+ 1), which is the same for boxes of whole pixels.
    """
    scores: list[float] = []
    hits: list[bool] = []
    objects = 0
    for found, score, found_label, boxes, labels, difficult in images:
        mine, there = found_label == label, labels == label
        objects += int((there & ~difficult).sum())
        order = np.argsort(-score[mine], kind="stable")
        kept, hit = _match_image(found[mine][order], boxes[there], difficult[there], threshold)
        scores += score[mine][order][kept].tolist()
        hits += hit[kept].tolist()
    ranked = np.argsort(-np.array(scores), kind="stable")
    return Matched(np.array(hits, dtype=bool)[ranked], objects)


def area_under_curve(matched: Matched) -> float:
    """VOC 2010 and later: the area under the precision envelope, at every recall. NaN where nothing is there."""
    recall, precision = _curve(matched)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope).sum()) if matched.objects else float("nan")


def eleven_points(matched: Matched) -> float:
    """VOC 2007: the mean of the best precision at a recall of at least 0, 0.1, ... 1. NaN where nothing is there."""
    recall, precision = _curve(matched)
    best = [precision[recall >= point].max(initial=0.0) for point in np.arange(11) / 10]
    return float(np.mean(best)) if matched.objects else float("nan")


def _match_image(
    found: Floats, boxes: Floats, difficult: NDArray[np.bool_], threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections count, and which of them hit; they come highest score first."""
    kept, hit = np.ones(len(found), dtype=bool), np.zeros(len(found), dtype=bool)
    if len(boxes) == 0:
        return kept, hit
    overlap = _overlap(found, boxes)
    taken = np.zeros(len(boxes), dtype=bool)
    for index, row in enumerate(overlap):
        best = int(row.argmax())
        if row[best] < threshold:
            continue
        kept[index] = not difficult[best]
        hit[index] = not taken[best]
        taken[best] = True
    return kept, hit


def _overlap(first: Floats, second: Floats) -> Floats:
    """Intersection over union [n, m]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    sizes = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    union = sizes[0][:, None] + sizes[1][None, :] - shared
    return np.asarray(shared / np.maximum(union, 1e-12))


def _curve(matched: Matched) -> tuple[Floats, Floats]:
    right = matched.hits.cumsum().astype(np.float64)
    return right / max(matched.objects, 1), right / np.arange(1, len(right) + 1)
