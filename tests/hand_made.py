"""Analyses made by hand, without a model: for the tests of cost, importance and budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import networkx
import numpy as np

from effp_fx.groups import Analysis, ChannelGroup, Frozen, Slice, TensorDims, Term


@dataclass
class Sketch:
    """Groups first, then layers between them; `analysis()` puts all together."""

    groups: list[ChannelGroup] = field(default_factory=list)
    tensors: dict[str, TensorDims] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)
    channels: int = 0

    def group(
        self, size: int, *, name: str = "", min_kept: int = 1, multiple_of: int = 1, rows: Sequence[int] = (1,)
    ) -> np.ndarray:
        """Adds a group; gives the numbers of its channels."""
        start, stop = self.channels, self.channels + size
        name = name or f"g{len(self.groups)}"
        slices = tuple(Slice(tensor=f"{name}.weight", dim=0, role="out", per_channel=count) for count in rows)
        made = ChannelGroup(
            name=name,
            start=start,
            stop=stop,
            slices=slices,
            gammas=(),
            layers=(name,),
            min_kept=min_kept,
            multiple_of=multiple_of,
        )
        self.groups.append(made)
        self.channels = stop
        return np.arange(start, stop)

    def layer(
        self, name: str, out: np.ndarray, into: np.ndarray, *, positions: int = 1, kernel: int = 1, bias: bool = False
    ) -> None:
        """Adds a convolution `into` -> `out`, whose entries are channels or -1."""
        dims = {dim: numbers for dim, numbers in enumerate((out, into)) if (numbers >= 0).any()}
        self.tensor(f"{name}.weight", (len(out), len(into), kernel), dims, masked=frozenset({0}))
        self.terms.append(Term(constant=2.0 * positions * kernel, factors=(out, into), layer=name, node=name))
        if bias:
            self.tensor(f"{name}.bias", (len(out),), {0: out} if (out >= 0).any() else {}, masked=frozenset({0}))
            self.terms.append(Term(constant=float(positions), factors=(out,), layer=name, node=name))

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dims: dict[int, np.ndarray],
        *,
        is_parameter: bool = True,
        masked: frozenset[int] = frozenset(),
    ) -> None:
        """Adds a parameter or a buffer."""
        self.tensors[name] = TensorDims(shape=shape, dims=dims, is_parameter=is_parameter, masked=masked)

    def analysis(self) -> Analysis:
        """What has been drawn."""
        return Analysis(
            channels=self.channels,
            groups=tuple(self.groups),
            tensors=self.tensors,
            flop_terms=tuple(self.terms),
            activation_terms=(),
            frozen=tuple(self.frozen),
            group_graph=networkx.DiGraph(),
        )


def fixed(count: int) -> np.ndarray:
    """Entries that are never removed."""
    return np.full(count, -1)


def chain(widths: Sequence[int], *, positions: Sequence[int] | None = None, outputs: int = 10) -> Sketch:
    """A plain stack of 3x3 convolutions from 3 fixed channels to `outputs` fixed ones."""
    sketch = Sketch()
    before = fixed(3)
    for i, width in enumerate(widths):
        now = sketch.group(width, name=f"conv{i}")
        sketch.layer(f"conv{i}", now, before, positions=positions[i] if positions else 1, kernel=9, bias=True)
        before = now
    sketch.layer("head", fixed(outputs), before, bias=True)
    return sketch
