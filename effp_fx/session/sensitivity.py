"""How much the loss would miss each channel: a running mean over steps, from the gradients that are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from effp_fx.groups import Analysis, Channels, Keep
from effp_fx.importance import Floats
from effp_fx.session.channel_sums import channel_sums, others, wide
from effp_fx.sites import sites_of

_MEMORY = 0.99
"""How much of the running mean a step leaves in place: it looks back over some hundred batches."""


@dataclass(frozen=True)
class _Reading:
    """One dimension of one parameter and the channel of each of its indices, -1 for none."""

    tensor: str
    dim: int
    channels: Channels


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
        self._readings = _readings(analysis, trainable)
        self.squares: Floats = np.zeros(analysis.channels)
        """The running mean (K)."""

    def observe(self, alive: Keep, scale: Tensor | None) -> None:
        """Take the gradients of a step in, before anything is added to them.

        Args:
            alive: (K) True where a channel is on.
            scale: by what a GradScaler has multiplied all gradients; None: by nothing.
        """
        with torch.no_grad():
            found = [(part.channels, _along(self._tensors[part.tensor], part.dim)) for part in self._readings]
        there = [(channels, slope) for channels, slope in found if slope is not None]
        if not there:
            return
        total = channel_sums(there, len(self.squares)) / (1.0 if scale is None else float(scale))
        moved = alive & np.isfinite(total)
        self.squares[moved] += (1 - _MEMORY) * (total[moved] ** 2 - self.squares[moved])

    def scores(self) -> Floats:
        """(K), higher for what the loss would miss more."""
        return np.sqrt(self.squares)


def _readings(analysis: Analysis, trainable: set[str]) -> tuple[_Reading, ...]:
    """The sites of all groups, and beside them what shifts their channels: betas and biases."""
    sites = [_Reading(site.tensor, site.dim, site.channels) for site in sites_of(analysis, trainable)]
    taken = {(reading.tensor, reading.dim) for reading in sites}
    shifts = {
        (part.tensor, part.dim)
        for group in analysis.groups
        for part in group.slices
        if part.role in ("out", "carry") and len(analysis.tensors[part.tensor].shape) == 1 and part.tensor in trainable
    }
    rest = sorted(shifts - taken)
    return (*sites, *(_Reading(name, dim, analysis.tensors[name].dims[dim]) for name, dim in rest))


def _along(value: Tensor, dim: int) -> Tensor | None:
    """Value times gradient, summed over all dimensions but one, in float32 at least; None where there is none."""
    if value.grad is None:
        return None
    product = value.to(wide(value)) * value.grad.to(wide(value))
    rest = others(product, dim)
    return product.sum(rest) if rest else product
