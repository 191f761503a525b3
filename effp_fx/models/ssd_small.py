"""A small SSD for images of 96 to 160 pixels that trains from scratch on a CPU in minutes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.ops import Conv2dNormActivation

from effp_fx.models.fixed_size import FixedSizeSSD

STRIDES = (4, 8, 16, 32)
"""Pixels between neighbours of each feature map: an object of 8 pixels needs the first, a large one the last."""
ASPECT_RATIOS: tuple[list[int], ...] = ([], [2], [2], [2])
SCALES = (0.08, 0.15, 0.29, 0.55, 0.9)
"""Sides of the default boxes as parts of the image; between two maps' lies the square's of both (SSD, page 6)."""

DEFAULTS = {"iou_thresh": 0.5, "score_thresh": 0.02, "topk_candidates": 50, "detections_per_img": 100}
"""Options of torchvision's SSD whose defaults are others here: fewer candidates, for there are few objects."""


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around which the input is passed on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Conv2dNormActivation(channels, channels, 3)
        self.second = Conv2dNormActivation(channels, channels, 3, activation_layer=None)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        out: Tensor = self.act(x + self.second(self.first(x)))
        return out


class SmallBackbone(nn.Module):
    """A stem and four stages, each a convolution of stride 2 and residual blocks; every stage gives a feature map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = [2 * width, 4 * width, 4 * width, 4 * width]
        self.stem = Conv2dNormActivation(3, width, 3, stride=2)
        inputs = [width, *self.out_channels]
        self.stages = nn.ModuleList(
            nn.Sequential(Conv2dNormActivation(i, o, 3, stride=2), Residual(o))
            for i, o in zip(inputs, self.out_channels, strict=False)
        )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return the four maps under their number, finest first, from images (N, 3, H, W)."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            maps[str(i)] = x = stage(x)
        return maps


class SSDSmall(FixedSizeSSD):
    """torchvision's SSD, with its losses, matching and decoding, on a backbone of about 0.3 M parameters.

    Differences from SSD300: batch norm throughout, a first map of stride 4 for small objects, no L2 norm (batch norm
    has settled the scale), no interpolation of images that have the size.
    """

    def __init__(self, num_classes: int = 13, size: int = 96, width: int = 16, **options: Any) -> None:
        """Build the net.

        Args:
            num_classes: the background, which is class 0, included.
            size: height and width in pixels, a multiple of 16 from 64 to 320.
            width: channels of the stem, a multiple of 8; the stages have twice to four times as many.
            options: those of ``torchvision.models.detection.ssd.SSD``, such as ``score_thresh``.

        Raises:
            ValueError: size or width is not as said.
        """
        if size % 16 or not 64 <= size <= 320:
            raise ValueError(f"size must be a multiple of 16 from 64 to 320, not {size}")
        if width < 8 or width % 8:
            raise ValueError(f"width must be a multiple of 8, not {width}")
        boxes = DefaultBoxGenerator(list(ASPECT_RATIOS), scales=list(SCALES), steps=list(STRIDES))
        super().__init__(SmallBackbone(width), boxes, size, num_classes, **{**DEFAULTS, **options})
