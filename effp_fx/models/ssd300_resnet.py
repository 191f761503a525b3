"""SSD300 with ResNet-50, as NVIDIA's "SSD300 v1.1" and MLPerf's single-stage reference have it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import Conv2dNormActivation

from effp_fx.models.ssd300 import SSD300

_OUT_CHANNELS = [1024, 512, 512, 256, 256, 256]
_INNER_CHANNELS = [256, 256, 128, 128, 128]


class ResNetExtractor(nn.Module):
    """ResNet-50 up to conv4_x, whose stride is taken out so that its map has 38 cells a side, and five extra blocks."""

    def __init__(self, weights: Any = None) -> None:
        super().__init__()
        net = resnet50(weights=weights)
        first = net.layer3[0]
        first.conv2.stride = first.downsample[0].stride = (1, 1)
        stem = [net.conv1, net.bn1, net.relu, net.maxpool]
        self.features = nn.Sequential(*stem, net.layer1, net.layer2, net.layer3)
        channels = zip(_OUT_CHANNELS, _INNER_CHANNELS, _OUT_CHANNELS[1:], strict=False)
        self.extra = nn.ModuleList(_extra(*sizes, halve=i < 3) for i, sizes in enumerate(channels))
        self.out_channels = _OUT_CHANNELS

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return six maps under their number, finest first, from images (N, 3, 300, 300)."""
        maps = [self.features(x)]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(i), each) for i, each in enumerate(maps))


def _extra(inputs: int, inner: int, outputs: int, *, halve: bool) -> nn.Sequential:
    """1x1, then 3x3 of stride 2, or without padding once the map is down to 5 cells."""
    return nn.Sequential(
        Conv2dNormActivation(inputs, inner, 1),
        Conv2dNormActivation(inner, outputs, 3, stride=2 if halve else 1, padding=int(halve)),
    )


def ssd300_resnet50(num_classes: int = 21, weights_backbone: Any = None, **options: Any) -> SSD300:
    """SSD300 on ResNet-50: 38 x 38 x 1024 from conv4_x, and no L2 norm, since batch norm has settled the scale.

    Differences from NVIDIA's: torchvision's heads, losses and decoding; torchvision's bottleneck, which strides in
    its 3x3 convolution; the default boxes for VOC unless ``scales`` are given (theirs are ``ssd300.COCO_SCALES``).

    Args:
        num_classes: the background included.
        weights_backbone: of ``resnet50``, such as ``"DEFAULT"`` (downloads); None starts from scratch.
        options: those of ``SSD300``.
    """
    return SSD300(ResNetExtractor(weights_backbone), num_classes, **options)
