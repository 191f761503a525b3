"""Trains a tiny net for some steps with a session attached, and says what is held: what the session's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from effp_fx import Session, models

STEPS = 12
UPDATES: dict[str, Any] = {"start": 0.2, "end": 0.7, "updates": 4, "regrow": 0.5}
"""At steps 2, 4, 6 and 8 of 12; the first takes channels off already."""
Make = Callable[[nn.Module], torch.optim.Optimizer]


class Silu(nn.Module):
    """SiLU after every batch norm: beta of a held channel has a gradient, for the slope at zero is a half."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.SiLU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()),
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).mean((2, 3)))


def net(name: str = "chain") -> nn.Module:
    """A tiny net with weights from seed 0, gammas that differ, in train mode."""
    torch.manual_seed(0)
    model = Silu() if name == "silu" else models.build(f"effp:{name}?width=8").model
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.uniform_(0.5, 1.5)
    return model.train()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """With all that moves a parameter whose gradient is zero."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2)


def attached(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Session:
    """A session of STEPS steps on images of 3 x 16 x 16."""
    options = {"target_flops": 0.5, "target_params": 0.5, "example_inputs": batch(0, 2)[0]} | options
    return Session(model, optimizer, options.pop("total_steps", STEPS), **UPDATES | options)


def batch(step: int, size: int = 4) -> tuple[Tensor, Tensor]:
    """Images and labels, the same for the same step."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.rand(size, 3, 16, 16, generator=generator), torch.randint(5, (size,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, loss: Any = None) -> Iterator[int]:
    """Take the steps; gives control after each of them."""
    for step in steps:
        images, labels = batch(step)
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(images), labels)
        (value if loss is None else value + loss()).backward()
        optimizer.step()
        yield step


def held(session: Session) -> list[str]:
    """The parameters of which a part that is off is not exactly zero; there must be some that is off."""
    assert not session.keep.all(), "nothing is off, which proves nothing"
    wrong = []
    for name, dims in session.analysis.tensors.items():
        for dim in dims.masked if dims.is_parameter else ():
            rows = torch.from_numpy((dims.dims[dim] >= 0) & ~session.keep[dims.dims[dim]])
            if session._tensors[name].detach().transpose(0, dim)[rows].count_nonzero():
                wrong.append(f"{name}, dimension {dim}")
    return wrong
