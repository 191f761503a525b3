"""A small net, a tiny data set and a trainer for both: what the conformance kit of the pruning methods runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effp_fx.inputs import Example
from effp_fx.methods import Attach, Budget, Rider
from effp_fx.methods.problem import Problem, pose
from effp_fx.train import checkpoint

STEPS = 6
"""Of an epoch."""
EPOCHS = 4
BUDGET = Budget(EPOCHS, flops=0.5, params=0.55)


class Small(nn.Module):
    """A residual sum, a depthwise convolution, a layer without batch norm, and SiLU beside ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.deep = nn.Sequential(
            *(nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU()),
            *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.SiLU()),
        )
        self.plain = nn.Conv2d(16, 14, 3, padding=1)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = self.deep(torch.relu(x + self.block(x)))
        return self.head(torch.relu(self.plain(x)).mean((2, 3)))


def net() -> nn.Module:
    """Weights from seed 0, gammas that differ."""
    torch.manual_seed(0)
    model = Small()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
    return model.train()


def batch(number: int, size: int = 6) -> tuple[Tensor, Tensor]:
    """Images and labels, the same for the same number."""
    generator = torch.Generator().manual_seed(number)
    return torch.rand(size, 3, 8, 8, generator=generator), torch.randint(5, (size,), generator=generator)


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), labels)


class CutOff(Exception):
    """What a trainer raises that is cut off."""


@dataclass
class Tiny:
    """A trainer; with a folder it goes on after a cut, which comes after `until` epochs."""

    folder: Path | None = None
    until: int = 10**6
    epoch: int = 0
    fits: int = 0
    asked: list[int] = field(default_factory=list)
    example: Any = field(default_factory=lambda: Example((batch(0, 2)[0],)))

    def fit(self, model: nn.Module, epochs: int, attach: Attach | None = None) -> Rider | None:
        self.asked.append(epochs)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2)
        rider = attach(optimizer, epochs * STEPS) if attach else None
        model.train()
        file = None
        if self.folder is not None:
            self.folder.mkdir(exist_ok=True)
            file = self.folder / f"{self.fits}.safetensors"
        done = 0
        if file is not None and file.exists():
            saved = checkpoint.read(file)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            if rider is not None:
                rider.load_state_dict(saved["rider"])
            done = saved["epochs"]
        for epoch in range(done, epochs):
            for step in range(STEPS):
                optimizer.zero_grad()
                loss_of(model, *batch(100 * (self.epoch + epoch) + step)).backward()
                optimizer.step()
            if file is not None:
                state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
                checkpoint.write(file, {**state, "rider": None if rider is None else rider.state_dict()})
            if self.epoch + epoch + 1 == self.until:
                raise CutOff
        if rider is not None:
            rider.close()
        self.epoch += epochs
        self.fits += 1
        return rider

    def score(self, model: nn.Module) -> float:
        images, labels = batch(0, 32)
        model.eval()
        with torch.no_grad():
            found = float((model(images).argmax(1) == labels).float().mean())
        model.train()
        return found

    def batches(self, count: int) -> Sequence[Any]:
        return [batch(number) for number in range(min(count, 4))]


def posed(model: nn.Module | None = None, budget: Budget = BUDGET) -> Problem:
    return pose(net() if model is None else model, Tiny(), budget)
