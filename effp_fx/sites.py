"""Where the magnitude of a channel is read in training: its gammas, or its filters where none can be trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from effp_fx.groups import Analysis, Channels


@dataclass(frozen=True)
class Along:
    """One dimension of one tensor."""

    tensor: str
    dim: int
    rank: int
    """Dimensions of the tensor."""
    channels: Channels
    """The channel of each index of the dimension, -1 where it is none that is spoken of."""


@dataclass(frozen=True)
class Site(Along):
    """One dimension of one parameter that says how large its channels are."""

    is_gamma: bool


def sites_of(analysis: Analysis, trainable: Collection[str]) -> tuple[Site, ...]:
    """The sites of every group: its trainable gammas; else its trainable filters; else whatever makes it.

    Args:
        analysis: the channel groups.
        trainable: names of the parameters that the optimizer moves.
    """
    gammas: dict[tuple[str, int], Site] = {}
    filters: dict[tuple[str, int], Site] = {}
    for group in analysis.groups:
        parts = [part for part in group.slices if part.role in ("out", "carry")]
        scales = [part for part in parts if part.tensor in group.gammas and part.tensor in trainable]
        if scales:
            chosen, found = scales, gammas
        else:
            makers = [part for part in parts if len(analysis.tensors[part.tensor].shape) > 1] or parts
            chosen, found = [part for part in makers if part.tensor in trainable] or makers, filters
        for part in chosen:
            own = analysis.tensors[part.tensor].dims[part.dim].copy()
            own[(own < group.start) | (own >= group.stop)] = -1
            key = part.tensor, part.dim
            before = found.get(key)
            if before is not None:  # one tensor that two groups run through
                own[before.channels >= 0] = before.channels[before.channels >= 0]
            found[key] = Site(part.tensor, part.dim, len(analysis.tensors[part.tensor].shape), own, bool(scales))
    return (*gammas.values(), *filters.values())
