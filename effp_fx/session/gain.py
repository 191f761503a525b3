"""How far an optimizer moves weights for a gradient that lasts, measured while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_MEMORY = 0.99
"""How much of the running means a step leaves in place: they outlast the momentum of any usual optimizer."""


class Gain:
    """The distance that one step moves a weight over the size of a gradient that has been there for many steps.

    SGD: the learning rate; with momentum m: the learning rate over 1 - m; Adam: the learning rate over the root of the
    mean squared gradient. Measured (ours) as the running mean of what weights moved over the running mean of their
    gradients, each in the sum of its absolute values: what points elsewhere at every step cancels in both, and the
    optimizer, its schedule and what a user does to gradients are in it as they are. While the learning rate rises the
    running means lag, so the last step alone counts where it says more.

    What is held does not move and does not count. A weight matrix counts with one weight of each of its filters.

    Args:
        weights: the user's own parameters by name.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)
        self._memory = torch.zeros(4, sum(len(value) for value in self._weights.values()))
        """At the last step: weights and their gradients; up to it: means of what was moved and of the gradients."""
        self.value = 0.0
        """In units of weight per gradient; 0 before the second step."""

    @torch.no_grad()
    def observe(self, scale: Tensor | None) -> None:
        """Look at weights and gradients once all gradients of a step are there.

        Args:
            scale: by what a GradScaler has multiplied all gradients; None: by nothing.
        """
        weight = _one_each([value.detach() for value in self._weights.values()])
        now = _one_each([torch.zeros_like(v) if v.grad is None else v.grad for v in self._weights.values()])
        before, gradient, moved_mean, gradient_mean = self._memory.to(weight.device)
        alive = (before != 0) & (weight != 0)
        moved, gradient = torch.where(alive, weight - before, 0), torch.where(alive, gradient, 0)
        moved_mean = moved_mean.lerp(moved, 1 - _MEMORY)
        gradient_mean = gradient_mean.lerp(gradient, 1 - _MEMORY)
        sizes = torch.stack([moved, gradient, moved_mean, gradient_mean]).abs().sum(1).tolist()  # one transfer
        self.value = max(_over(*sizes[:2]), _over(*sizes[2:]))
        now = now if scale is None else now / scale.to(now.device)
        self._memory = torch.stack([weight, now, moved_mean, gradient_mean])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {"memory": self._memory.clone(), "value": self.value}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take a state over, from whatever device."""
        self._memory, self.value = saved["memory"].clone(), saved["value"]


def _one_each(values: Sequence[Tensor]) -> Tensor:
    """One entry for each index of the first dimension of each, as one float32 vector."""
    return torch.cat([_first_of_each(value).to(values[0].device, torch.float32) for value in values])


def _first_of_each(value: Tensor) -> Tensor:
    """A view: to flatten what lies channels last would copy it."""
    while value.ndim > 1:
        value = value.select(-1, 0)
    return value


def _over(moved: float, gradient: float) -> float:
    return moved / gradient if gradient > 0 else 0.0
