"""What a family's output means: which tensors are boxes, scores and labels, and how detections are chosen from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """A tensor of the model's output, or some columns of one."""

    output: str | int
    """Its place among the output's tensors, or its key (`"boxes"`), which each item of a list of images has."""
    columns: tuple[int, int] | None = None
    """First column and the one after the last; None: all of it."""
    dim: int = -1
    """The dimension that the coordinates, or the classes, lie along."""


@dataclass(frozen=True)
class Detection:
    """How to read the output of a detector, and how its boxes become detections.

    Without `labels` the output holds every anchor: boxes (batch, anchors, 4), scores (batch, anchors, classes), `dim`
    telling where the last of these dimensions is. With `labels` it holds what was selected, a box, a score and a label
    for each detection.
    """

    boxes: Field
    scores: Field
    labels: Field | None = None
    box_format: str = "xyxy"
    """"xyxy" are two corners, "cxcywh" a centre with width and height."""
    normalised: bool = False
    """Whether coordinates are parts of the image's width and height; else pixels of the network's input."""
    activation: str = "none"
    """What makes probabilities of the scores: "none", "sigmoid", "softmax"."""
    background: int | None = None
    """The class that stands for nothing, dropped after the activation; -1 is the last."""
    iou_threshold: float | None = None
    """Above it the weaker of two boxes of a class is suppressed; None: the family suppresses nothing."""
    score_threshold: float = 0.0
    """Detections score above it."""
    max_detections: int = 300
    candidates: int | None = None
    """How many of the best enter suppression; None: all."""
    candidates_per: str = "image"
    """What `candidates` are counted in: "class", "level" (of the pyramid), "image"; with "anchor" those anchors enter
    whose best class scores highest."""
    best_class_only: bool = False
    """Whether a box stands for its best class alone."""
