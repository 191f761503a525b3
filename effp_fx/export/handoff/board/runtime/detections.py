"""From the network's outputs to detections: thresholds, candidates, suppression; and detections compared as sets."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple

import numpy as np

Decoding = Dict[str, Any]


class Detections(NamedTuple):
    """What was found in one picture, best first."""

    boxes: Any
    """(n, 4): left, top, right, bottom in pixels of the network's input."""
    scores: Any
    labels: Any


def detect(
    outputs: dict[str, Any], meanings: dict[str, str], decoding: Decoding, size: tuple[int, int]
) -> list[Detections]:
    """The detections of each picture of a batch.

    Args:
        outputs: by name.
        meanings: name -> "boxes", "scores", "count", "detection boxes", ...
        decoding: as in the manifest.
        size: width and height of the network's input.
    """
    found = {meanings.get(name, "raw"): np.asarray(value) for name, value in outputs.items()}
    if "detection boxes" in found:
        return _chosen(found, decoding, size)
    batch = found["boxes"].shape[0]
    return [
        _one(found["boxes"][at].astype(np.float32), found["scores"][at].astype(np.float32), decoding, size)
        for at in range(batch)
    ]


def _chosen(found: dict[str, Any], decoding: Decoding, size: tuple[int, int]) -> list[Detections]:
    """What a network with suppression of its own gives: so many of the first rows count."""
    counts = found["count"].reshape(-1)
    batch = len(counts)
    boxes = found["detection boxes"].reshape(batch, -1, 4).astype(np.float32)
    scores = found["detection scores"].reshape(batch, -1).astype(np.float32)
    labels = found["detection classes"].reshape(batch, -1).astype(np.int64)
    made = []
    for at, count in enumerate(counts):
        kept = np.flatnonzero(scores[at, : int(count)] > decoding["score_threshold"])
        corners = boxes[at, kept] * _unit(decoding, size)  # of whatever format they were, by now they are corners
        made.append(Detections(corners, scores[at, kept], labels[at, kept]))
    return made


def _one(boxes: Any, scores: Any, decoding: Decoding, size: tuple[int, int]) -> Detections:
    anchors, columns = _candidates(scores, decoding)
    values = scores[anchors, columns]
    corners = _corners(boxes[anchors], decoding, size)
    order = np.argsort(-values, kind="stable")
    most = int(decoding["max_detections"])
    if decoding["iou_threshold"] is not None:
        order = order[suppress(corners[order], columns[order], float(decoding["iou_threshold"]), most)]
    order = order[:most]
    classes = np.asarray(decoding["classes"], dtype=np.int64)
    return Detections(corners[order], values[order], classes[columns[order]])


def _candidates(scores: Any, decoding: Decoding) -> tuple[Any, Any]:
    """Anchor and class of every pair that scores above the threshold and is among the best that may go on."""
    allowed = scores > decoding["score_threshold"]
    if decoding["best_class_only"]:
        best = np.zeros_like(allowed)
        best[np.arange(len(scores)), scores.argmax(1)] = True
        allowed &= best
    most: int | None = decoding["candidates"]
    if most is not None and decoding["candidates_per"] == "anchor":
        passing = np.argsort(-scores.max(1), kind="stable")[:most]
        allowed[np.setdiff1d(np.arange(len(scores)), passing)] = False
    anchors, columns = np.nonzero(allowed)
    if most is None or decoding["candidates_per"] == "anchor":
        return anchors, columns
    groups = _groups(anchors, columns, decoding)
    kept = [_best(np.flatnonzero(groups == group), scores[anchors, columns], most) for group in np.unique(groups)]
    chosen = np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)
    return anchors[chosen], columns[chosen]


def _groups(anchors: Any, columns: Any, decoding: Decoding) -> Any:
    if decoding["candidates_per"] == "class":
        return columns
    if decoding["candidates_per"] == "level":
        return np.searchsorted(np.cumsum(decoding["levels"]), anchors, side="right")
    return np.zeros_like(anchors)


def _best(members: Any, values: Any, most: int) -> Any:
    return members[np.argsort(-values[members], kind="stable")[:most]]


def _corners(boxes: Any, decoding: Decoding, size: tuple[int, int]) -> Any:
    if decoding["box_format"] == "cxcywh":
        half = boxes[:, 2:] / 2
        boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    return boxes * _unit(decoding, size)


def _unit(decoding: Decoding, size: tuple[int, int]) -> Any:
    """What one stands for in x and y, twice: a pixel, or the whole input."""
    return np.asarray(size * 2 if decoding["normalised"] else (1, 1, 1, 1), dtype=np.float32)


def suppress(boxes: Any, classes: Any, threshold: float, most: int) -> Any:
    """Which boxes stay, best first: greedy, within each class, until there are `most`. `boxes` come best first."""
    stay = np.zeros(len(boxes), dtype=bool)
    held = np.zeros((most, 4), dtype=np.float32)
    held_classes = np.full(most, -1, dtype=np.int64)
    count = 0
    for at, (box, label) in enumerate(zip(boxes, classes)):
        if count == most:
            break
        rivals = held[:count][held_classes[:count] == label]
        if rivals.size and overlap(box, rivals).max() > threshold:
            continue
        stay[at] = True
        held[count], held_classes[count] = box, label
        count += 1
    return np.flatnonzero(stay)


def overlap(box: Any, others: Any) -> Any:
    """Intersection over union of one box with others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    whole = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def agreement(one: Detections, two: Detections, score: float, least_overlap: float = 0.9) -> tuple[int, int]:
    """How many detections of either side have a partner on the other, and how many there are: compared as sets.

    Partners have the same label, overlap by `least_overlap`, and scores no further apart than `score`.
    """
    used = np.zeros(len(two.scores), dtype=bool)
    pairs = 0
    for at in range(len(one.scores)):
        fits = ~used & (two.labels == one.labels[at]) & (np.abs(two.scores - one.scores[at]) <= score)
        near = np.where(fits, overlap(one.boxes[at], two.boxes), -1.0)
        if near.size and near.max() >= least_overlap:
            used[int(near.argmax())] = True
            pairs += 1
    return 2 * pairs, len(one.scores) + len(two.scores)
