"""Tiny nets whose hard case is how they are written: sizes in Python, in-place ops, shared parameters, odd shapes."""

# mypy: disable-error-code="no-any-return"
# A module call is typed Any; the annotations of forward are for the reader.
from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d, roi_align

from effp_fx.models.tiny import Head, TinyNet, conv


class FrozenNorm(TinyNet):
    """Frozen batch norms: scale, shift and statistics are buffers, not parameters."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.first, self.second = (nn.Conv2d(c, width, 3, padding=1, bias=False) for c in (3, width))
        self.norms = nn.ModuleList(FrozenBatchNorm2d(width) for _ in range(2))
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.first(x)).relu()
        return self.head((x + self.norms[1](self.second(x))).relu())


class PythonSize(TinyNet):
    """Sizes kept as integers: ``split`` by an attribute, ``view`` by another, a slice by a third."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = conv(3, 2 * width)
        self.sizes = (width // 2, width + width // 2)
        self.c = 2 * width
        self.kept = width
        self.narrow, self.wide = conv(width // 2, width), conv(width + width // 2, width)
        self.merge = conv(2 * width, 2 * width)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        narrow, wide = self.stem(x).split(self.sizes, 1)
        x = torch.cat([self.narrow(narrow), self.wide(wide)], 1)
        x = self.merge(x).view(len(x), self.c, -1).view(len(x), self.c, *x.shape[2:])
        return self.head(x[:, : self.kept])


class InPlace(TinyNet):
    """In-place sums, activations, and writes into a view of a buffer made on the way."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem, self.left, self.right = conv(3, width), conv(width, width, act=False), conv(width, width)
        self.head = Head(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        left, right = self.left(x), self.right(x)
        left += x
        left.relu_()
        joined = x.new_zeros(len(x), left.shape[1] + right.shape[1], *x.shape[2:])
        joined[:, : left.shape[1]] = left
        joined[:, left.shape[1] :].copy_(right).mul_(2).relu_()
        return self.head(joined)


class Tied(TinyNet):
    """One convolution under two names, one weight tensor in two layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = conv(3, width)
        self.first = conv(width, width)
        self.again = self.first
        self.left, self.right = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.right.weight = self.left.weight
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.first(self.stem(x)))
        return self.head(self.left(x).relu() + self.right(x.neg()).relu())


class UNet(TinyNet):
    """Transposed convolutions on the way up, a skip concatenation, a grouped transposed one."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.down, self.deep = conv(3, width), conv(width, 2 * width, stride=2)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge = conv(2 * width, width)
        self.depthwise = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, groups=width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = self.merge(torch.cat([self.up(self.deep(skip)), skip], 1))
        return self.out(self.depthwise(x).relu())


class Auxiliary(TinyNet):
    """A second head that runs only in training, and ties channels that nothing ties in eval mode."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.first, self.second = conv(3, width), conv(width, width)
        self.head, self.auxiliary = Head(width), Head(width)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        first = self.first(x)
        second = self.second(first)
        if not self.training:
            return self.head(second)
        return {"out": self.head(second), "aux": self.auxiliary(first + second)}


class Gate(TinyNet):
    """A gated linear unit by halves, then a sigmoid straight into a convolution, which sees 0.5 where masked."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem, self.gated = conv(3, width), conv(width, 2 * width, act=False)
        self.inner, self.last = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 3, padding=1)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.gated(self.stem(x)), dim=1)
        return self.head(self.last(torch.sigmoid(self.inner(x))))


class Padding(TinyNet):
    """Borders that are not zero: reflected, circular, replicated, and a constant of one."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.reflect, self.circular = (
            conv(3, width, padding_mode="reflect"),
            conv(width, width, padding_mode="circular"),
        )
        self.valid = conv(width, width, padding=0)
        self.after = conv(width, width, padding=0)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.circular(self.reflect(x))
        x = self.valid(F.pad(x, (1, 1, 1, 1), mode="replicate"))
        return self.head(self.after(F.pad(x, (1, 1, 1, 1), value=1.0)))


class Pooling(TinyNet):
    """SPPF, resizing in all its modes, and maps weighted by scalars as in a BiFPN."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem, self.merge = conv(3, width), conv(4 * width, width)
        self.weights = nn.Parameter(torch.ones(3))
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        x = self.merge(torch.cat(maps, 1))
        small, large = F.avg_pool2d(x, 2), F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        small = F.interpolate(small, size=x.shape[2:], mode="bicubic", align_corners=False)
        weights = self.weights.relu() / (self.weights.relu().sum() + 1e-4)
        return self.head(weights[0] * x + weights[1] * small + weights[2] * F.adaptive_max_pool2d(large, x.shape[-1]))


class Scale(TinyNet):
    """The scaled L2 norm of SSD: a norm over all channels of a pixel, then a parameter for each channel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem, self.after = conv(3, width), conv(width, width)
        self.scale = nn.Parameter(torch.full((width,), 20.0))
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale.view(1, -1, 1, 1) * F.normalize(self.stem(x))
        return self.head(self.after(x))


class Deformable(TinyNet):
    """A deformable convolution, whose offsets and modulation come from another one; regions by roi_align."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = conv(3, width)
        self.offsets, self.modulation = nn.Conv2d(width, 18, 3, padding=1), nn.Conv2d(width, 9, 3, padding=1)
        self.deformable = DeformConv2d(width, width, 3, padding=1)
        self.box = nn.Linear(9 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.deformable(x, self.offsets(x), self.modulation(x).sigmoid()).relu()
        boxes = x.new_tensor([[0, 1.0, 1.0, 9.0, 9.0], [1, 0.0, 2.0, 12.0, 12.0]])
        return self.box(roi_align(x, boxes, 3).flatten(1))


class Line(TinyNet):
    """Convolutions over one dimension; the flattened length is a linear layer's input."""

    input_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((2, 4, 32),)

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.first, self.norm = nn.Conv1d(4, width, 3, padding=1), nn.BatchNorm1d(width)
        self.second = nn.Conv1d(width, width, 5, stride=2, padding=2, groups=2)
        self.head = nn.Linear(16 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(self.second(x).relu().flatten(1))


class Clip(TinyNet):
    """Convolutions over three dimensions, time and space apart, and a second input that is added to the first."""

    input_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((2, 3, 4, 8, 8), (2, 3, 4, 8, 8))

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.space = nn.Conv3d(3, width, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.time = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm3d(width) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.norms[0](self.space(x) + self.space(y)).relu()
        return self.head(self.norms[1](self.time(x)).relu().mean((2, 3, 4)))


NETS: dict[str, type[TinyNet]] = {
    "frozen_norm": FrozenNorm,
    "python_size": PythonSize,
    "in_place": InPlace,
    "tied": Tied,
    "unet": UNet,
    "auxiliary": Auxiliary,
    "gate": Gate,
    "padding": Padding,
    "pooling": Pooling,
    "scale": Scale,
    "deformable": Deformable,
    "line": Line,
    "clip": Clip,
}
