"""Detectors that a session is measured on: real losses on drawn scenes, and detections in torchvision's form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

from benchmarks.zoo_subject import SEED
from effp_fx import data
from effp_fx.data.shapes import CLASSES
from effp_fx.models import registry

Samples = list[tuple[Tensor, dict[str, Any]]]
_LEAST_SCORE = 0.001
_MOST_BOXES = 300


@dataclass(frozen=True)
class Subject:
    """A detector with fresh weights, and how it is trained and asked."""

    model: nn.Module
    loss: Callable[[nn.Module, Samples], Tensor]
    detect: Callable[[nn.Module, Tensor], dict[str, Tensor]]
    """Boxes [n, 4] xyxy, scores [n] and labels [n] in one image."""
    size: int
    """Side of the images, pixels."""


def subject(spec: str, size: int) -> Subject:
    """The detector of a spec, for the classes of the drawn scenes, weights from one seed."""
    torch.manual_seed(SEED)
    if spec.startswith("ultralytics:"):
        return _yolo(spec, size)
    model = registry.build(f"{spec}{'&' if '?' in spec else '?'}num_classes={len(CLASSES) + 1}").model
    return Subject(model, _torchvision_loss, _torchvision_detections, size)


def scenes(folder: Path, size: int, images: int) -> Samples:
    """Drawn scenes, images float [3, size, size] in 0 to 1; the same for the same arguments."""
    root = data.write_scenes(folder / str(size), images=images, val_images=1, size=size, difficulty=0.2)
    found = data.open_voc(root, "train", classes=list(CLASSES))
    return [(image.float() / 255, target) for image, target in (found[index] for index in range(images))]


def _torchvision_loss(model: nn.Module, samples: Samples) -> Tensor:
    images, targets = [image for image, _ in samples], [target for _, target in samples]
    losses: dict[str, Tensor] = model(images, targets)
    return torch.stack([loss.sum() for loss in losses.values()]).sum()


def _torchvision_detections(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = model([image])[0]
    return found


def _yolo(spec: str, size: int) -> Subject:
    from ultralytics.cfg import get_cfg

    model: Any = registry.build(f"{spec}?nc={len(CLASSES)}").model
    model.args = get_cfg()  # the gains of its losses
    return Subject(model, _yolo_loss, _yolo_detections, size)


def _yolo_loss(model: Any, samples: Samples) -> Tensor:
    images = torch.stack([image for image, _ in samples])
    boxes = [box_convert(target["boxes"], "xyxy", "cxcywh") / images.shape[-1] for _, target in samples]
    batch = {
        "img": images,
        "bboxes": torch.cat(boxes),
        "cls": torch.cat([target["labels"] - 1 for _, target in samples]).float()[:, None],
        "batch_idx": torch.cat([torch.full((len(box),), float(index)) for index, box in enumerate(boxes)]),
    }
    loss: Tensor = model.loss(batch)[0].sum()
    return loss


def _yolo_detections(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    outputs = model(image[None])
    rows = (outputs[0] if isinstance(outputs, tuple) else outputs)[0].T  # (anchors, 4 + classes)
    scores, labels = rows[:, 4:].max(dim=1)
    boxes = box_convert(rows[:, :4], "cxcywh", "xyxy")
    chosen = (scores > _LEAST_SCORE).nonzero().flatten()
    chosen = chosen[batched_nms(boxes[chosen], scores[chosen], labels[chosen], 0.65)][:_MOST_BOXES]
    return {"boxes": boxes[chosen], "scores": scores[chosen], "labels": labels[chosen] + 1}
