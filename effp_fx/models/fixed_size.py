"""What our detectors share: one square input size, and torchvision's transform at little cost where it fits already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SSD_OPTIONS = frozenset(
    ("score_thresh", "nms_thresh", "detections_per_img", "iou_thresh", "topk_candidates", "positive_fraction")
)


class FixedSizeTransform(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision ships no types
    """Normalise images and bring them to one square size.

    The difference from torchvision's: images that have the size already are stacked and normalised in one go, neither
    interpolated nor copied one by one. The values are the same. Everything else takes torchvision's way.
    """

    def __init__(self, size: int) -> None:
        """``size``: height and width in pixels."""
        mean, std = list(IMAGENET_MEAN), list(IMAGENET_STD)
        super().__init__(size, size, mean, std, size_divisible=1, fixed_size=(size, size))

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> tuple[ImageList, Any]:
        """Return the batch (N, 3, size, size) with its image sizes, and the targets with boxes in its pixels."""
        assert self.fixed_size is not None  # set above
        shape = (3, *self.fixed_size)
        if any(tuple(image.shape) != shape for image in images):
            return super().forward(images, targets)  # type: ignore[no-any-return]  # torchvision ships no types
        batch = self.normalize(torch.stack(list(images)))
        return ImageList(batch, [self.fixed_size] * len(images)), targets


class FixedSizeSSD(SSD):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's SSD with that transform; heads, losses, matching, hard negative mining, decoding are its own."""

    def __init__(
        self, backbone: nn.Module, boxes: DefaultBoxGenerator, size: int, num_classes: int, **options: Any
    ) -> None:
        """Put heads on a backbone whose ``out_channels`` lists the channels of its maps.

        Raises:
            TypeError: an option that is not in torchvision's SSD, which itself would say nothing.
        """
        if unknown := sorted(set(options) - _SSD_OPTIONS):
            raise TypeError(f"unknown: {', '.join(unknown)}; SSD has the options {', '.join(sorted(_SSD_OPTIONS))}")
        super().__init__(backbone, boxes, (size, size), num_classes, **options)
        self.transform = FixedSizeTransform(size)
