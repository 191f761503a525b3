"""Sums per channel of what lies along dimensions of tensors, wherever these are: one transfer, and always one order.

Sums on a GPU come out in another order each time. Here they are made on the CPU, so that two processes of one training,
or one that is resumed, have the same numbers to the last bit. Vectors, which are most of what a network has, are joined
before anything is done with them: this runs before each step of a training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from effp_fx.importance import Floats
from effp_fx.sites import Along


class ChannelSums:
    """Adds up what several dimensions of tensors have for each channel.

    Args:
        parts: the dimensions.
        channels: how many channels there are (K).
        measure: of values, and perhaps of others of the same shape, element by element.
    """

    def __init__(self, parts: Sequence[Along], channels: int, measure: Callable[..., Tensor]) -> None:
        self.parts = sorted(parts, key=lambda part: part.rank > 1)
        """In the order in which they are added up: vectors first."""
        self.numbers = np.concatenate([*(part.channels for part in self.parts), np.zeros(0, dtype=np.int64)])
        """Of the parts' channels, one behind the other."""
        self._own = np.flatnonzero(self.numbers >= 0)
        self._channels, self._measure = channels, measure

    def __call__(self, *values: Callable[[str], Tensor]) -> Floats:
        """The sum of the measure for each channel (K).

        Args:
            values: name of a tensor -> what the measure takes; several for a measure of several.
        """
        rows = []
        vectors = [part.tensor for part in self.parts if part.rank == 1]
        if vectors:
            rows.append(self._measure(*(joined([value(name) for name in vectors]) for value in values)))
        for part in self.parts[len(vectors) :]:
            measured = self._measure(*(widened(value(part.tensor)) for value in values))
            rows.append(measured.sum([axis for axis in range(part.rank) if axis != part.dim]))
        if not rows:
            return np.zeros(self._channels)
        found = joined(rows).cpu().numpy()
        return np.bincount(self.numbers[self._own], found[self._own], self._channels).astype(np.float64, copy=False)


def widened(value: Tensor) -> Tensor:
    """In float32 at least, to be added up."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def joined(vectors: Sequence[Tensor]) -> Tensor:
    """One vector, where the first of them is, in float32 at least."""
    return widened(torch.cat([vector.to(vectors[0].device) for vector in vectors]))


def slope_of(tensors: Mapping[str, Tensor]) -> Callable[[str], Tensor]:
    """The gradient of each tensor by name; zeros where there is none."""

    def slope(name: str) -> Tensor:
        value = tensors[name]
        return torch.zeros_like(value) if value.grad is None else value.grad

    return slope
