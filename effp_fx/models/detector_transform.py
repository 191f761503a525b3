"""The input side that our detectors share: torchvision's transform, cheap where there is nothing to resize."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
