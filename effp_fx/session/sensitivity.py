"""How much the loss would miss each channel: a running mean over steps, from the gradients that are there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from effp_fx.groups import Analysis, Keep
from effp_fx.importance import Floats
from effp_fx.session.channel_sums import ChannelSums, slope_of
from effp_fx.sites import Along, sites_of

_MEMORY = 0.99
"""How much of the running mean a step leaves in place: it looks back over some hundred batches."""


class Sensitivity:
    """The slope of the network's loss along the indicator of each channel, squared, averaged over steps.

    What multiplies a channel by its indicator multiplies gamma and beta of every norm that makes it (its filters and
    biases, where none can be trained), so the slope at 1 is the sum of value times gradient over all of them: the
    first-order Taylor score of Molchanov et al. (2019) at the batch norm, as HALP has it (Shen et al. 2022), with the
    places that a channel is coupled at summed before the square (Group Fisher, Liu et al. 2021). Ours: the running
    mean, and its root as the score, which is of the loss's own unit.

    What is held has no slope and keeps its score.

    Args:
        analysis: the channel groups.
        tensors: the user's own parameters by name; what is frozen gives no slope.
    """

    def __init__(self, analysis: Analysis, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        trainable = {name for name, value in tensors.items() if value.requires_grad}
        self._sums = ChannelSums(_parts(analysis, trainable), analysis.channels, torch.mul)
        self._read = sorted({part.tensor for part in self._sums.parts})
        self.squares: Floats = np.zeros(analysis.channels)
        """The running mean (K)."""

    @torch.no_grad()
    def observe(self, alive: Keep, scale: Tensor | None) -> None:
        """Take the gradients of a step in, before anything is added to them.

        Args:
            alive: (K) True where a channel is on.
            scale: by what a GradScaler has multiplied all gradients; None: by nothing.
        """
        if all(self._tensors[name].grad is None for name in self._read):
            return
        total = self._sums(self._tensors.__getitem__, slope_of(self._tensors)) / (
            1.0 if scale is None else float(scale)
        )
        moved = alive & np.isfinite(total)
        self.squares[moved] += (1 - _MEMORY) * (total[moved] ** 2 - self.squares[moved])

    def scores(self) -> Floats:
        """(K), higher for what the loss would miss more."""
        return np.sqrt(self.squares)


def _parts(analysis: Analysis, trainable: set[str]) -> list[Along]:
    """The sites of all groups, and beside them what shifts their channels: betas and biases."""
    sites = sites_of(analysis, trainable)
    taken = {(site.tensor, site.dim) for site in sites}
    shifts = {
        (part.tensor, part.dim)
        for group in analysis.groups
        for part in group.slices
        if part.role in ("out", "carry") and len(analysis.tensors[part.tensor].shape) == 1 and part.tensor in trainable
    }
    return [*sites, *(Along(name, dim, 1, analysis.tensors[name].dims[dim]) for name, dim in sorted(shifts - taken))]
