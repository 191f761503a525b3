"""Shrinks whole channels while they may still be pruned: the group penalty of OTO (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from effp_fx.groups import Analysis, Keep
from effp_fx.importance import Floats, Place
from effp_fx.session.channel_sums import ChannelSums, slope_of
from effp_fx.sites import Along

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
        places = owned(analysis)
        parts = [
            Along(name, dim, len(analysis.tensors[name].shape), analysis.tensors[name].dims[dim])
            for name, dim in places
        ]
        self._squares = ChannelSums(parts, analysis.channels, torch.square)
        self._weights = {name: tensors[name] for name, _ in places}
        self.length: float | None = None
        """Running mean of the length of the network's gradient by a channel's weights."""
        self._strength, self._every = every * strength, every

    @torch.no_grad()
    def norms(self) -> Floats:
        """||x_c||_2 of each channel (K)."""
        found: Floats = np.sqrt(self._squares(self._weights.__getitem__))
        return found

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
        slopes = {name: value.grad for name, value in self._weights.items() if value.grad is not None}
        norms = self.norms()
        alive = alive & (norms > 0)
        if not slopes or not alive.any():
            return
        by = 1.0 if scale is None else float(scale)
        lengths = np.sqrt(self._squares(slope_of(self._weights)))
        length = float(lengths[alive].mean()) / by
        if not np.isfinite(length):  # a GradScaler will leave this step out
            return
        self.length = length if self.length is None else _MEMORY * self.length + (1 - _MEMORY) * length
        factors = np.where(alive, by * self._strength * self.length / np.maximum(norms, _TINY), 0.0)
        self._add(slopes, np.append(factors, 0.0))  # the last is that of no channel, number -1

    def _add(self, slopes: Mapping[str, Tensor], factors: Floats) -> None:
        """Add to each slope the weights times their channel's factor."""
        parts = self._squares.parts
        device = next(iter(slopes.values())).device
        of_all = torch.from_numpy(factors[self._squares.numbers]).to(device, torch.float32)
        to, weights, by = [], [], []
        for part, own in zip(parts, of_all.split([len(part.channels) for part in parts]), strict=True):
            if part.tensor in slopes:
                slope = slopes[part.tensor]
                to.append(slope)
                weights.append(self._weights[part.tensor].detach().to(slope))
                by.append(own.to(slope).reshape([-1 if axis == part.dim else 1 for axis in range(part.rank)]))
        torch._foreach_addcmul_(to, weights, by)
