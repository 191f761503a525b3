"""Holds channels at zero in the user's own parameters, and keeps what they were on the side until they come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from effp_fx.groups import Analysis, Keep

Slot = tuple[str, int, str]
"""Tensor, dimension, and what is kept of it: `value`, or the name of an optimizer state of the same shape."""
States = Mapping[str, dict[str, object]]
"""For each parameter that the optimizer has moved, its state."""


@dataclass
class Holder:
    """Channels that are off: zero where their weights are, and their last live values on the side.

    What belongs to a channel are the slices that hand it out (filter, bias, gamma, beta, tables), the statistics of its
    norms, and the optimizer's state of all these. Weights that only read it are left alone: their gradient is zero.
    """

    analysis: Analysis
    tensors: Mapping[str, Tensor]
    """Parameters and buffers by name: the user's own objects."""
    off: Keep = field(init=False)
    """(K) True where the channel is held."""
    aside: dict[Slot, Tensor] = field(default_factory=dict)
    _rows: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """For each dimension with held channels the indices that are zero."""

    def __post_init__(self) -> None:
        self.off = np.zeros(self.analysis.channels, dtype=np.bool_)

    def hold(self, off: Keep, states: States, *, forever: bool = False) -> None:
        """Put the channels of `off` (K) aside and zero them. Nothing may be held before: `release` first.

        With `forever` nothing is put aside, for nothing of it will come back.
        """
        if self.off.any():
            raise AssertionError("channels are held already")
        self.off = off.copy()
        self._rows = dict(self._indices())
        with torch.no_grad():
            for (name, dim), rows in ({} if forever else self._rows).items():
                for kind, value in self._slots(name, states):
                    self.aside[name, dim, kind] = value.index_select(dim, rows)
            # Only when all is put aside: a tensor with two such dimensions has entries in both.
            for (name, dim), rows in self._rows.items():
                if dim in self.analysis.tensors[name].masked:
                    for _, value in self._slots(name, states):
                        value.index_fill_(dim, rows, 0)

    def release(self, states: States) -> None:
        """Put everything back as it was when last alive."""
        with torch.no_grad():
            for (name, dim, kind), values in self.aside.items():
                target = dict(self._slots(name, states)).get(kind)
                if target is not None:
                    target.index_copy_(dim, self._rows[name, dim], values.to(target))
        self.aside.clear()
        self._rows.clear()
        self.off = np.zeros_like(self.off)

    def zero(self) -> None:
        """Zero what is held, whatever moved it: momentum, weight decay, an update of beta."""
        with torch.no_grad():
            for (name, dim), rows in self._rows.items():
                if dim in self.analysis.tensors[name].masked:
                    self.tensors[name].index_fill_(dim, rows, 0)

    def restore(self, off: Keep, aside: Mapping[Slot, Tensor]) -> None:
        """Take over what another holder held, from a checkpoint; the parameters are taken to be zero already."""
        self.off = off.copy()
        self._rows = dict(self._indices())
        self.aside = {
            (name, dim, kind): values.to(self.tensors[name].device) for (name, dim, kind), values in aside.items()
        }

    def _indices(self) -> Iterator[tuple[tuple[str, int], Tensor]]:
        for name, dims in self.analysis.tensors.items():
            # Of a parameter what hands channels out; of a buffer the statistics as well.
            own = dims.masked if dims.is_parameter else dims.dims.keys()
            for dim in sorted(own):
                flags = (dims.dims[dim] >= 0) & self.off[dims.dims[dim]]
                if flags.any():
                    yield (name, dim), torch.from_numpy(np.flatnonzero(flags)).to(self.tensors[name].device)

    def _slots(self, name: str, states: States) -> Iterator[tuple[str, Tensor]]:
        """A tensor and the optimizer's states of its shape (momentum, averages of squares)."""
        value = self.tensors[name]
        yield "value", value
        for kind, state in sorted(states.get(name, {}).items()):
            if isinstance(state, Tensor) and state.shape == value.shape and state.dim():
                yield kind, state
