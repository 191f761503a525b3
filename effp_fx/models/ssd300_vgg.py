"""SSD300 with VGG-16 and batch norm: the detector of the EFFP paper."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models import vgg16_bn
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG

from effp_fx.models.ssd300 import SSD300

_OUT_CHANNELS = [512, 1024, 512, 256, 256, 256]


def ssd300_vgg16_bn(num_classes: int = 21, weights_backbone: Any = None, **options: Any) -> SSD300:
    """SSD300 whose every convolution but the heads' is followed by a batch norm.

    torchvision's ``ssd300_vgg16`` (dilated fc6, fc7, four extra blocks, conv4_3 through a scaled L2 norm) on its
    ``vgg16_bn``, so that backbone weights of torchvision fit. fc6, fc7 and the extras get batch norms too, and lose
    the bias that a norm makes idle.

    Args:
        num_classes: the background included.
        weights_backbone: of ``vgg16_bn``, such as ``"DEFAULT"`` (downloads); None starts from scratch.
        options: those of ``SSD300``.
    """
    backbone = SSDFeatureExtractorVGG(vgg16_bn(weights=weights_backbone).features, highres=False)
    for index, block in enumerate(backbone.extra):
        backbone.extra[index] = with_norms(block)
    backbone.out_channels = _OUT_CHANNELS  # where SSD looks for them
    return SSD300(backbone, num_classes, **options)


def with_norms(block: nn.Sequential) -> nn.Sequential:
    """Return the block, nested ones flattened, with a batch norm after each convolution that has none."""
    layers = list(_flat(block))
    normed: list[nn.Module] = []
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        normed.append(layer)
        if isinstance(layer, nn.Conv2d) and not isinstance(following, nn.BatchNorm2d):
            layer.bias = None
            normed.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*normed)


def _flat(block: nn.Sequential) -> list[nn.Module]:
    return [leaf for layer in block for leaf in (_flat(layer) if isinstance(layer, nn.Sequential) else [layer])]
