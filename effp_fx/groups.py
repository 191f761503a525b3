"""What the analysis of a model found: channels, groups, frozen parts, the products that make up costs; data only."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import numpy.typing as npt
from torch import fx

from effp_fx.capture import Capture

Channels = npt.NDArray[np.int64]
"""For each index of a dimension the number of its channel, -1 where it is never removed."""
Keep = npt.NDArray[np.bool_]
"""For each channel whether it is kept."""


@dataclass(frozen=True)
class Slice:
    """One dimension of one parameter or buffer that a group runs through."""

    tensor: str
    dim: int
    role: str
    """`out` (hands the channel out), `in` (reads it), `carry` (follows it: bias, gamma, beta), `stat` (statistics)."""
    per_channel: int
    """Rows of the dimension that belong to one channel."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels with the same set of slices: `start .. stop - 1`."""

    name: str
    start: int
    stop: int
    slices: tuple[Slice, ...]
    gammas: tuple[str, ...]
    layers: tuple[str, ...]
    min_kept: int = 1
    multiple_of: int = 1

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.stop - self.start


@dataclass(frozen=True)
class Frozen:
    """Output channels of a layer that stay, and the reason of the first of them."""

    tensor: str
    dim: int
    channels: int
    reason: str
    op: str
    module: str
    source: str

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.op, self.module, self.source) if part)
        return f"{self.tensor}: {self.channels} channels: {self.reason}" + (f" ({place})" if place else "")


@dataclass(frozen=True)
class Term:
    """A cost: `constant` times the kept size of each factor."""

    constant: float
    factors: tuple[Channels, ...]
    layer: str
    node: str


@dataclass(frozen=True)
class TensorDims:
    """The channels of one parameter or buffer."""

    shape: tuple[int, ...]
    dims: dict[int, Channels]
    is_parameter: bool
    masked: frozenset[int]
    """The dimensions whose slices are zeroed to mask a channel; the others read channels or hold statistics."""
    reading: frozenset[int] = frozenset()
    """Those of them that only read a channel, one whose value is not zero while it is masked."""


@dataclass(frozen=True)
class Graph:
    """One captured graph with the channels of every value in it."""

    capture: Capture
    dims: dict[fx.Node, list[dict[int, Channels]]]
    """For each node and output: dimension -> channels, dimensions without channels left out."""
    novel: bool = True
    """Whether it does anything to channels that no graph before it does at the same place, to the same channels."""

    @staticmethod
    def of(capture: Capture, dims: dict[fx.Node, list[dict[int, Channels]]], repeated: AbstractSet[fx.Node]) -> Graph:
        """The graph, novel where an op that handles channels is not among those `repeated` from a graph before it."""
        novel = any(
            node.op == "call_function"
            and node not in repeated
            and any(known for item in (node, *node.all_input_nodes) for known in dims[item])
            for node in dims
        )
        return Graph(capture, dims, novel)


@dataclass(frozen=True)
class Analysis:
    """All that is known of a model's channels."""

    channels: int
    groups: tuple[ChannelGroup, ...]
    tensors: dict[str, TensorDims]
    flop_terms: tuple[Term, ...]
    activation_terms: tuple[Term, ...]
    frozen: tuple[Frozen, ...]
    group_graph: nx.DiGraph
    graphs: tuple[Graph, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What the user should know: layers that did not run, values that were fixed to the example."""

    def keep_all(self) -> Keep:
        """The mask that keeps every channel."""
        return np.ones(self.channels, dtype=np.bool_)

    def group(self, name: str) -> ChannelGroup:
        """The group of this name. Raises KeyError."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


def kept_flags(channels: Channels, keep: Keep) -> Keep:
    """For each index whether it is left."""
    flags: Keep = np.ones(len(channels), dtype=np.bool_)
    known = channels >= 0
    flags[known] = keep[channels[known]]
    return flags
