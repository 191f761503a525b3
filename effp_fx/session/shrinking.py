"""Shrinks whole channels while they may still be pruned: the group penalty of OTO (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from effp_fx.groups import Analysis, Keep
from effp_fx.importance import Floats, Place
from effp_fx.session.channel_sums import channel_sums, others, wide

_MEMORY = 0.9
"""How much of the running mean is left in place each time."""
_TINY = 1e-12


def owned(analysis: Analysis) -> list[Place]:
    """All that hands channels out and can be trained: filters, biases, gammas, betas (OTO's zero-invariant groups)."""
    return [
        (name, dim)
        for name, dims in analysis.tensors.items()
        if dims.is_parameter
        for dim in sorted(dims.masked - dims.reading)
    ]


class Shrinking:
    """Adds the gradient of lambda * sum_c ||x_c||_2, with x_c all weights that hand channel c out.

    With `every` above 1 it adds the gradient of so many steps at once, as the lazy regularisation of StyleGAN2 does
    (Karras et al. 2020): the optimizer's momentum spreads it.

    lambda is (ours) at every step the one at which that gradient of a channel is `strength` times as long as the
    network's, on the mean of all channels: it neither grows nor fades with the loss.

    Args:
        analysis: the channel groups.
        tensors: the user's own parameters by name.
        strength: 0 or more.
        every: how many steps lie from one that it adds to, to the next.
    """

    def __init__(self, analysis: Analysis, tensors: Mapping[str, Tensor], strength: float, *, every: int = 1) -> None:
        self.places = owned(analysis)
        self.weights = {name: tensors[name] for name, _ in self.places}
        self.length: float | None = None
        """Running mean of the length of the network's gradient by a channel's weights."""
        self._analysis, self._strength, self._every = analysis, every * strength, every

    def norms(self) -> Floats:
        """||x_c||_2 of each channel (K)."""
        return self._lengths({name: value.detach() for name, value in self.weights.items()})

    @torch.no_grad()
    def press(self, alive: Keep, step: int, scale: Tensor | None = None) -> None:
        """Add to the gradients that are there, where it is time to.

        Args:
            alive: (K) True where a channel is on.
            step: optimizer steps taken so far.
            scale: by what a GradScaler has multiplied all gradients; None: by nothing.
        """
        if step % self._every:
            return
        slopes = {name: value.grad for name, value in self.weights.items() if value.grad is not None}
        norms = self.norms()
        alive = alive & (norms > 0)
        if not slopes or not alive.any():
            return
        by = 1.0 if scale is None else float(scale)
        length = float(self._lengths(slopes)[alive].mean()) / by
        if not np.isfinite(length):  # a GradScaler will leave this step out
            return
        self.length = length if self.length is None else _MEMORY * self.length + (1 - _MEMORY) * length
        weight = np.where(alive, by * self._strength * self.length / np.maximum(norms, _TINY), 0.0)
        weights = torch.from_numpy(np.append(weight, 0.0))  # the last is that of no channel, number -1
        for name, dim in self.places:
            if name not in slopes:
                continue
            slope, numbers = slopes[name], torch.from_numpy(self._analysis.tensors[name].dims[dim])
            shape = [-1 if axis == dim else 1 for axis in range(slope.dim())]
            slope.addcmul_(self.weights[name].detach().to(slope), weights[numbers].to(slope).reshape(shape))

    def _lengths(self, values: Mapping[str, Tensor]) -> Floats:
        rows = [
            (self._analysis.tensors[name].dims[dim], _along(values[name], dim))
            for name, dim in self.places
            if name in values
        ]
        found: Floats = np.sqrt(channel_sums(rows, self._analysis.channels))
        return found


def _along(value: Tensor, dim: int) -> Tensor:
    """The sum of squares over all dimensions but one."""
    rest = others(value, dim)
    if not rest:
        return value.to(wide(value)).square()
    return torch.linalg.vector_norm(value, dim=rest, dtype=wide(value)).square()
