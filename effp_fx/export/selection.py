"""Detections in PyTorch: the model's own, read from its output, and those that the same rules choose from its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from effp_fx import decoded_part
from effp_fx.capture import tensors_of
from effp_fx.export.report import Decoding
from effp_fx.models import Detection, Field


@dataclass(frozen=True)
class Detections:
    """What one image shows."""

    boxes: Tensor
    """(detections, 4), two corners."""
    scores: Tensor
    labels: Tensor


def own(output: Any, detection: Detection) -> list[Detections] | tuple[Tensor, Tensor]:
    """What a model returned: its detections for each image, or boxes and scores (probabilities) of every anchor."""
    tensors, spec = tensors_of(output)
    boxes, scores = (_read(tensors, spec, field) for field in (detection.boxes, detection.scores))
    if detection.labels is None:
        return boxes[0], _probabilities(scores[0], detection)
    labels = _read(tensors, spec, detection.labels)
    if boxes[0].ndim == 3:  # one tensor for all images
        boxes, scores, labels = list(boxes[0]), list(scores[0]), list(labels[0])
    return [
        Detections(_corners(box.reshape(-1, 4), detection.box_format), score.flatten(), label.flatten().long())
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]


def _read(tensors: Sequence[Tensor], spec: pytree.TreeSpec, field: Field) -> list[Tensor]:
    found = []
    for place in decoded_part.places(spec, field):
        tensor = tensors[place]
        if field.columns is not None:
            tensor = tensor.narrow(field.dim, field.columns[0], field.columns[1] - field.columns[0])
        found.append(tensor if field.dim == -1 else tensor.transpose(field.dim, -1))
    return found


def _probabilities(scores: Tensor, detection: Detection) -> Tensor:
    if detection.activation == "sigmoid":
        scores = scores.sigmoid()
    elif detection.activation == "softmax":
        scores = scores.softmax(-1)
    if detection.background is None:
        return scores
    kept = [column for column in range(scores.shape[-1]) if column != detection.background % scores.shape[-1]]
    return scores[..., kept]


def _corners(boxes: Tensor, box_format: str) -> Tensor:
    return boxes if box_format == "xyxy" else box_convert(boxes, box_format, "xyxy")


def select(boxes: Tensor, scores: Tensor, decoding: Decoding) -> list[Detections]:
    """Choose detections from boxes (batch, anchors, 4) and scores (batch, anchors, classes) as `decoding` says."""
    found = []
    labels = torch.tensor(decoding.classes)
    for box, score in zip(_corners(boxes, decoding.box_format), scores, strict=True):
        score = _candidates(score, decoding)
        anchor, column = (score > decoding.score_threshold).nonzero(as_tuple=True)
        values = score[anchor, column]
        if decoding.iou_threshold is None:
            order = values.argsort(descending=True, stable=True)
        else:
            kept = box[anchor]
            # torchvision keeps classes apart by an offset that takes coordinates for positive.
            order = batched_nms(kept - kept.min() if len(kept) else kept, values, column, decoding.iou_threshold)
        order = order[: decoding.max_detections]
        found.append(Detections(box[anchor[order]], values[order], labels[column[order]]))
    return found


def _candidates(scores: Tensor, decoding: Decoding) -> Tensor:
    """Scores (anchors, classes) in which all that does not enter suppression is 0."""
    if decoding.best_class_only:
        scores = torch.where(scores >= scores.amax(1, keepdim=True), scores, 0.0)
    most = decoding.candidates
    if most is None:
        return scores
    if decoding.candidates_per == "class":
        return _best(scores, scores, most, 0)
    if decoding.candidates_per == "anchor":
        return _best(scores, scores.amax(1, keepdim=True), most, 0)
    levels = list(decoding.levels) if decoding.candidates_per == "level" else [len(scores)]
    return torch.cat([_best(part, part.flatten(), most, 0).reshape(part.shape) for part in scores.split(levels)])


def _best(scores: Tensor, compared: Tensor, most: int, dim: int) -> Tensor:
    if compared.ndim == 1:
        scores = scores.flatten()
    if most >= compared.shape[dim]:
        return scores
    least = compared.topk(most, dim).values.narrow(dim, most - 1, 1)
    return torch.where(compared >= least, scores, 0.0)


def rows_apart(found: tuple[Tensor, Tensor], wanted: list[Detections], decoding: Decoding) -> tuple[int, float]:
    """How many detections there are, and how far the farthest is from the nearest row of boxes and scores.

    The distance is the larger of that of the box, over the largest coordinate, and that of the score.
    """
    boxes, scores = _corners(found[0], decoding.box_format), found[1]
    columns = {label: column for column, label in enumerate(decoding.classes)}
    worst, count = 0.0, 0
    for at, image in enumerate(wanted):
        scale = float(boxes[at].abs().max()) or 1.0
        for box, score, label in zip(image.boxes, image.scores, image.labels.tolist(), strict=True):
            apart = torch.maximum(
                (boxes[at] - box).abs().amax(1) / scale, (scores[at, :, columns[label]] - score).abs()
            )
            worst, count = max(worst, float(apart.min())), count + 1
    return count, worst


def unmatched(found: list[Detections], wanted: list[Detections], tolerance: float) -> tuple[int, int]:
    """How many detections were wanted or found, the larger, and how many of them have no partner on the other side.

    Partners have one label, scores that differ by at most `tolerance`, and boxes that differ by at most that part of
    the largest coordinate; the order of detections does not matter.
    """
    total, apart = 0, 0
    for one, two in zip(found, wanted, strict=True):
        scale = max(float(two.boxes.abs().max()) if len(two.boxes) else 1.0, 1e-6)
        free = torch.ones(len(two.scores), dtype=torch.bool)
        matched = 0
        for box, score, label in zip(one.boxes, one.scores, one.labels, strict=True):
            near = (two.boxes - box).abs().amax(1) <= tolerance * scale
            near &= (two.labels == label) & ((two.scores - score).abs() <= tolerance) & free
            places = near.nonzero()
            if len(places):
                free[places[0]] = False
                matched += 1
        most = max(len(one.scores), len(two.scores))
        total, apart = total + most, apart + most - matched
    return total, apart
