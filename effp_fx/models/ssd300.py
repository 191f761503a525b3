"""SSD at 300 x 300 pixels: what its backbones share, after Liu et al., "SSD: Single Shot MultiBox Detector" (2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from effp_fx.models.fixed_size import FixedSizeSSD

ASPECT_RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
STEPS = [8, 16, 32, 64, 100, 300]
"""Pixels from one centre of default boxes to the next, for each of the six feature maps."""
VOC_SCALES = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)
"""Sides of the default boxes as parts of the image, as the paper has them for VOC: 30, 60, 111, ... pixels."""
COCO_SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
"""The smaller ones that the paper takes for COCO; torchvision's SSD300 and NVIDIA's SSD300 with ResNet-50 have them."""


class SSD300(FixedSizeSSD):
    """torchvision's SSD with six feature maps of 38, 19, 10, 5, 3 and 1 cells a side, 8732 default boxes in all.

    Interface, losses, matching, hard negative mining and decoding are torchvision's. Differences from its own
    ``ssd300_vgg16``: the default boxes are those for VOC unless told otherwise, and images of the right size are not
    interpolated. Batch norms see a map of one cell, so training needs two images a batch at least.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int = 21, scales: Sequence[float] = VOC_SCALES, **options: Any
    ) -> None:
        """Put the heads on a backbone.

        Args:
            backbone: (N, 3, 300, 300) -> ordered dict of six maps; its ``out_channels`` lists their channels.
            num_classes: the background, which is class 0, included.
            scales: seven sides of default boxes as parts of the image.
            options: those of ``torchvision.models.detection.ssd.SSD``, such as ``score_thresh``.
        """
        if len(scales) != len(ASPECT_RATIOS) + 1:
            raise ValueError(f"scales must be {len(ASPECT_RATIOS) + 1} numbers, not {len(scales)}")
        boxes = DefaultBoxGenerator(ASPECT_RATIOS, scales=list(scales), steps=STEPS)
        super().__init__(backbone, boxes, 300, num_classes, **options)
