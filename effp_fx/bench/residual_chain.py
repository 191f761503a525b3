"""A residual network with a given number of convolutions: what the time of a compiler is measured against."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = 4
WIDTHS = (8, 16, 24, 32)
IMAGE = (1, 3, 32, 32)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut that is a 1x1 convolution where the width changes."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        stride = 1 if inside == outside else 2
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (N, inside, H, W) -> (N, outside, H or H/2, W or W/2)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def residual_chain(convolutions: int) -> tuple[nn.Module, Tensor]:
    """A network of exactly that many convolutions (even, at least 12) in four stages, and an input for it.

    One is the stem, three are shortcuts between the stages, the others stand two in a block. Raises ValueError for a
    number that cannot be met.
    """
    blocks, odd = divmod(convolutions - STAGES, 2)
    if odd or blocks < STAGES:
        raise ValueError(f"{convolutions} convolutions: give an even number of at least {3 * STAGES}")
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 3, 1, 1)]
    inside = WIDTHS[0]
    for stage, width in enumerate(WIDTHS):
        for _ in range(blocks // STAGES + (stage < blocks % STAGES)):
            layers.append(Block(inside, width))
            inside = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10)]
    return nn.Sequential(*layers, *head).eval(), torch.rand(IMAGE)
