"""The loss of the YOLO-like net: task-aligned assignment, complete IoU, distribution focal loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou, complete_box_iou_loss

TOP_POINTS = 8
"""Points of an object that learn it. YOLOv8 has 10 on images of 640 pixels; here objects cover fewer points."""
SCORE_POWER, OVERLAP_POWER = 0.5, 6.0
"""Exponents of the alignment, score^a * IoU^b, as in YOLOv8 (TOOD: 1 and 6)."""
WEIGHTS = {"bbox_regression": 7.5, "classification": 0.5, "distribution": 1.5}
"""YOLOv8's weights of the three terms."""


def yolo_losses(
    logits: Tensor, boxes: Tensor, scores: Tensor, points: Tensor, strides: Tensor, targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the weighted losses of a batch, each divided by the sum of the target scores.

    Feng et al., "TOOD" (2021) for the assignment, Li et al., "Generalized Focal Loss" (2020) for the distances; the
    form and the weights are YOLOv8's, without its factor of the batch size.

    Args:
        logits: of the distances to left, top, right, bottom (N, points, 4, bins).
        boxes: predicted, x1 y1 x2 y2 in pixels (N, points, 4).
        scores: logits of the classes (N, points, classes), the background left out.
        points, strides: centres in pixels (points, 2) and pixels per distance (points, 1).
        targets: for each image ``boxes`` (n, 4) and ``labels`` (n,) from 1 up.
    """
    true_boxes = pad_sequence([t["boxes"].to(boxes) for t in targets], batch_first=True)  # (N, most boxes, 4)
    labels = pad_sequence([t["labels"] for t in targets], batch_first=True)  # 0 where padded
    if not true_boxes.shape[1]:  # no object in the whole batch
        nothing = boxes.sum() * 0 + logits.sum() * 0
        return {"bbox_regression": nothing, "classification": _all_background(scores), "distribution": nothing}
    with torch.no_grad():
        owner, quality = assign(boxes, scores.sigmoid(), points, true_boxes, labels)
        wanted = F.one_hot(labels.gather(1, owner).clamp(min=1) - 1, scores.shape[2]) * quality[..., None]
        total = quality.sum().clamp(min=1)
        image, point = torch.where(quality > 0)
        weight, box = quality[image, point], true_boxes[image, owner[image, point]]
    overlap_loss = complete_box_iou_loss(boxes[image, point], box) * weight
    distance_loss = _distance_loss(logits[image, point], points[point], strides[point], box) * weight
    score_loss = F.binary_cross_entropy_with_logits(scores, wanted.to(scores), reduction="sum")
    terms = {
        "bbox_regression": overlap_loss.sum(),
        "classification": score_loss,
        "distribution": distance_loss.sum(),
    }
    return {name: WEIGHTS[name] * term / total for name, term in terms.items()}


def assign(boxes: Tensor, scores: Tensor, points: Tensor, true_boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Say which object each point learns, and how well it should score.

    Points within an object compete by ``score^a * IoU^b``; the best few learn it, a point that several objects want
    the one it overlaps most. The score to learn is the alignment, scaled so that an object's best is its best IoU.

    Args:
        boxes: predicted (N, points, 4). scores: probabilities (N, points, classes). points: (points, 2).
        true_boxes: (N, objects, 4), padded with zeros. labels: (N, objects), 0 where padded.

    Returns:
        The object's index (N, points) and the score to learn (N, points), which is 0 where there is no object.
    """
    low, high = true_boxes[:, :, None, :2], true_boxes[:, :, None, 2:]
    inside = ((points > low) & (points < high)).all(-1)  # (N, objects, points); empty, thus false, for padding
    overlap = torch.stack([box_iou(t, b) for t, b in zip(true_boxes, boxes, strict=True)]).nan_to_num(0) * inside
    column = (labels.clamp(min=1) - 1)[:, None].expand(-1, scores.shape[1], -1)
    alignment = scores.gather(2, column).transpose(1, 2) ** SCORE_POWER * overlap**OVERLAP_POWER * inside
    chosen = alignment.topk(min(TOP_POINTS, alignment.shape[2]), dim=2).indices
    mask = torch.zeros_like(inside).scatter_(2, chosen, True) & inside
    owner = (overlap + mask).where(mask, -1.0).argmax(1)  # (N, points)
    mask &= F.one_hot(owner, mask.shape[1]).transpose(1, 2).bool()
    alignment, overlap = alignment * mask, overlap * mask
    best = alignment.amax(2, keepdim=True).clamp(min=1e-9)
    return owner, (alignment / best * overlap.amax(2, keepdim=True)).amax(1)


def _distance_loss(logits: Tensor, points: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
    """Cross entropy with the two bins beside the true distance, mean of the four sides: (n, 4, bins) -> (n,)."""
    distance = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], 1) / strides
    distance = distance.clamp(0, logits.shape[2] - 1.01)
    low = distance.floor().long()
    share = distance - low
    log = logits.log_softmax(-1)
    below, above = (log.gather(2, bin[..., None]).squeeze(2) for bin in (low, low + 1))
    return -(below * (1 - share) + above * share).mean(1)


def _all_background(scores: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(scores, torch.zeros_like(scores), reduction="sum")
    return WEIGHTS["classification"] * loss
