"""How far an optimizer moves weights for a gradient that lasts, measured while it trains."""

from __future__ import annotations

from collections.abc import Mapping
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
        self._weight: Tensor | None = None
        """At the last step, as `_gradient`."""
        self._gradient: Tensor | None = None
        self._moved_mean: Tensor | None = None
        self._gradient_mean: Tensor | None = None
        self.value = 0.0
        """In units of weight per gradient; 0 before the second step."""

    @torch.no_grad()
    def observe(self, scale: Tensor | None) -> None:
        """Look at weights and gradients once all gradients of a step are there.

        Args:
            scale: by what a GradScaler has multiplied all gradients; None: by nothing.
        """
        weight = torch.cat([_one_each(value.detach()) for value in self._weights.values()])
        if self._weight is not None and self._gradient is not None:
            alive = (self._weight != 0) & (weight != 0)
            moved = torch.where(alive, weight - self._weight, 0)
            gradient = torch.where(alive, self._gradient, 0)
            if self._moved_mean is None or self._gradient_mean is None:
                self._moved_mean, self._gradient_mean = torch.zeros_like(moved), torch.zeros_like(gradient)
            self._moved_mean.lerp_(moved, 1 - _MEMORY)
            self._gradient_mean.lerp_(gradient, 1 - _MEMORY)
            self.value = max(_ratio(moved, gradient), _ratio(self._moved_mean, self._gradient_mean))
        self._weight = weight
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in self._weights.values()]
        self._gradient = torch.cat([_one_each(gradient) for gradient in gradients]).to(weight)
        if scale is not None:
            self._gradient /= scale

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {name: _copy(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take a state over."""
        for name in _STATE:
            setattr(self, name, _copy(saved[name]))


_STATE = ("_weight", "_gradient", "_moved_mean", "_gradient_mean", "value")


def _copy(value: Tensor | float | None) -> Tensor | float | None:
    return value.clone() if isinstance(value, Tensor) else value


def _one_each(value: Tensor) -> Tensor:
    """One entry for each index of the first dimension, as a float32 vector."""
    while value.ndim > 1:
        value = value.select(-1, 0)
    return value.reshape(-1).float()


def _ratio(moved: Tensor, gradient: Tensor) -> float:
    size = float(gradient.abs().sum())
    return float(moved.abs().sum()) / size if size > 0 else 0.0
