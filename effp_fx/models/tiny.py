"""Tiny convolutional nets, each with one hard case of channel analysis; the docstring of each says which."""

# mypy: disable-error-code="no-any-return"
# A module call is typed Any; the annotations of forward are for the reader.
from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TinyNet(nn.Module):
    """Base of the tiny nets: what they take. ``width`` channels a layer, a multiple of 8."""

    input_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((2, 3, 16, 16),)

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        if width < 8 or width % 8:
            raise ValueError(f"width must be a multiple of 8, not {width}")


def conv(inputs: int, outputs: int, kernel: int = 3, *, act: bool = True, **options: Any) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; the map keeps its size at stride 1."""
    options = {"padding": kernel // 2, "bias": False} | options
    layers = [nn.Conv2d(inputs, outputs, kernel, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


class Head(nn.Sequential):
    """Global average and a linear layer to 5 classes."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class Chain(TinyNet):
    """No hard case: the net to begin with."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.body = nn.Sequential(conv(3, width), conv(width, 2 * width, stride=2), conv(2 * width, width))
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class NoNorm(TinyNet):
    """Convolutions with a bias and no norm: a masked bias would leak through the ReLU."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


class Residual(TinyNet):
    """Sums tie the stem, two blocks and a shortcut convolution to one set of channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = conv(3, width)
        self.inner = nn.Sequential(conv(width, 2 * width), conv(2 * width, width, act=False))
        self.outer = nn.Sequential(conv(width, width), conv(width, 2 * width, act=False, stride=2))
        self.shortcut = conv(width, 2 * width, 1, act=False, stride=2)
        self.head = Head(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.inner(x))
        return self.head(F.relu(self.outer(x) + self.shortcut(x)))


class Dense(TinyNet):
    """Every layer reads the concatenation of all before it, with the norm before the convolution."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width + 8 * i) for i in range(4))
        self.layers = nn.ModuleList(nn.Conv2d(width + 8 * i, 8, 3, padding=1, bias=False) for i in range(3))
        self.head = Head(width + 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = torch.cat([x, layer(norm(x).relu())], 1)
        return self.head(self.norms[3](x).relu())


class Reordered(TinyNet):
    """Two concatenations of the same tensors in different order, then the sum of both."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.a, self.b = conv(3, width), conv(3, width)
        self.left, self.right = conv(2 * width, width), conv(2 * width, width)
        self.head = Head(3 * width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        left, right = self.left(torch.cat([a, b], 1)), self.right(torch.cat([b, a], 1))
        return self.head(torch.cat([left * right, b, a], 1))


class C2f(TinyNet):
    """``chunk`` in two: the halves must stay equal in number, one feeds a residual block, all are concatenated."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = conv(3, 2 * width)
        self.block = nn.Sequential(conv(width, width), conv(width, width))
        self.merge = conv(3 * width, width, 1)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        halves = list(self.stem(x).chunk(2, 1))
        halves.append(halves[-1] + self.block(halves[-1]))
        return self.head(self.merge(torch.cat(halves, 1)))


class Shuffle(TinyNet):
    """ShuffleNet's channel shuffle: view, transpose, view, then a split by half."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem, self.branch = conv(3, 2 * width), conv(width, width)
        self.grouped = conv(2 * width, 2 * width, groups=2)
        self.head = Head(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            keep, work = x.chunk(2, 1)
            x = torch.cat([keep, self.branch(work)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.grouped(x))


class InvertedResidual(TinyNet):
    """Depthwise convolution between two pointwise ones, squeeze-and-excitation with a gate that is never zero."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = conv(3, width)
        self.expand = conv(width, 4 * width, 1)
        self.depthwise = conv(4 * width, 4 * width, groups=4 * width)
        self.squeeze, self.excite = nn.Conv2d(4 * width, 8, 1), nn.Conv2d(8, 4 * width, 1)
        self.project = conv(4 * width, width, 1, act=False)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.depthwise(self.expand(x)))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        return self.head(x + self.project(y * F.hardsigmoid(gate)))


class Multiplier(TinyNet):
    """A depthwise convolution with three outputs a channel, then one that is grouped four wide."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = conv(3, width)
        self.depthwise = conv(width, 3 * width, groups=width)
        self.grouped = conv(3 * width, 2 * width, groups=4)
        self.head = Head(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.depthwise(self.stem(x))))


class Grouped(TinyNet):
    """ResNeXt: a grouped convolution inside a residual block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = conv(3, width)
        self.block = nn.Sequential(
            conv(width, 2 * width, 1), conv(2 * width, 2 * width, groups=4), conv(2 * width, width, 1, act=False)
        )
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.block(x)))


class SharedHead(TinyNet):
    """One head over three levels of a pyramid, as in one-stage detectors: weights used three times, outputs joined."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.levels = nn.ModuleList(
            [conv(3, width), conv(width, 2 * width, stride=2), conv(2 * width, width, stride=2)]
        )
        self.laterals = nn.ModuleList(nn.Conv2d(c, 2 * width, 1) for c in (width, 2 * width, width))
        self.tower = conv(2 * width, width)
        self.boxes, self.scores = nn.Conv2d(width, 8, 3, padding=1), nn.Conv2d(width, 6, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        pyramid = [lateral(m) for lateral, m in zip(self.laterals, maps, strict=True)]
        for i in (1, 0):  # top down
            pyramid[i] = pyramid[i] + F.interpolate(pyramid[i + 1], scale_factor=2.0, mode="nearest")
        towers = [self.tower(level) for level in pyramid]
        return {
            "boxes": torch.cat([self.boxes(t).flatten(2).transpose(1, 2).reshape(len(t), -1, 4) for t in towers], 1),
            "scores": torch.cat([self.scores(t).permute(0, 2, 3, 1).reshape(len(t), -1, 3) for t in towers], 1),
        }


class FlattenLinear(TinyNet):
    """VGG's classifier: one channel is a block of 16 columns of the linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.body = nn.Sequential(conv(3, width), nn.MaxPool2d(2), conv(width, width), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(width * 16, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.body(x), 1))


class PixelShuffle(TinyNet):
    """Four channels become one at twice the size, so they stand or fall together; then the way back."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem, self.up, self.down = conv(3, width), conv(width, 4 * width), conv(4 * width, width)
        self.middle = conv(width, width)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.pixel_shuffle(self.up(self.stem(x)), 2))
        return self.head(self.down(F.pixel_unshuffle(x, 2)))


class Focus(TinyNet):
    """Space to depth by strided slices: each channel comes back four times, at four places of a concatenation."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem, self.after = conv(3, width), conv(4 * width, width)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        slices = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.head(self.after(torch.cat(slices, 1)))


class RepVGG(TinyNet):
    """A 3x3, a 1x1 and an identity branch that is only a batch norm, summed."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = conv(3, width)
        self.wide, self.point = conv(width, width, act=False), conv(width, width, 1, act=False)
        self.identity = nn.BatchNorm2d(width)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.wide(x) + self.point(x) + self.identity(x)))


NETS: dict[str, type[TinyNet]] = {
    "chain": Chain,
    "no_norm": NoNorm,
    "residual": Residual,
    "dense": Dense,
    "reordered": Reordered,
    "c2f": C2f,
    "shuffle": Shuffle,
    "inverted_residual": InvertedResidual,
    "multiplier": Multiplier,
    "grouped": Grouped,
    "shared_head": SharedHead,
    "flatten_linear": FlattenLinear,
    "pixel_shuffle": PixelShuffle,
    "focus": Focus,
    "rep_vgg": RepVGG,
}
