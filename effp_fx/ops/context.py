"""What a rule may do while the graph is walked: look at shadows, unite channels, freeze them with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from effp_fx import graph
from effp_fx.channel_ids import ChannelIds, Reason
from effp_fx.graph import TensorInfo
from effp_fx.ops.shadow import Array, Shadow, crop, flat, is_empty, leaky, spread, straight, varying

Facets = list[Tensor]
Result = Facets | list[Facets]
"""What a rule returns: the facets of its output, or one list for each of several outputs."""
SEEN = "not zero while masked, and this op would see the value"


@dataclass
class Call:
    """One op in the graph, with its arguments by the names of its schema."""

    node: fx.Node
    shadows: dict[fx.Node, list[Shadow]]

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments by name, defaults filled in."""
        return named_arguments(self.node.target, self.node.args, self.node.kwargs)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def first(self, *names: str) -> Any:
        """The first of these arguments that the schema has."""
        return next((self.arguments[name] for name in names if name in self.arguments), None)

    def shadow(self, node: Any, output: int = 0) -> Shadow:
        """The shadow of an argument; an empty one for None and numbers."""
        if isinstance(node, fx.Node):
            return self.shadows[node][output]
        return Shadow((), (), from_input=False)

    @property
    def inputs(self) -> list[Shadow]:
        """The shadows of all tensor arguments, lists included, in order."""
        return [shadow for node in self.node.all_input_nodes for shadow in self.shadows[node]]

    @property
    def out(self) -> TensorInfo:
        """The result (the first, of several)."""
        value = graph.infos(self.node)[0]
        if value is None:
            raise TypeError(f"{self.node.name} returns no tensor")
        return value

    @property
    def outs(self) -> list[TensorInfo]:
        """All results."""
        return [value for value in graph.infos(self.node) if value is not None]


def named_arguments(target: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of an op by the names of its schema, defaults filled in."""
    defaults = _defaults(target)
    return dict(kwargs) if defaults is None else {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}


@cache
def _defaults(target: Any) -> dict[str, Any] | None:
    """The arguments of an op in the order of its schema, with their defaults; None for what is no op."""
    schema = getattr(target, "_schema", None)
    return None if schema is None else {argument.name: argument.default_value for argument in schema.arguments}


@dataclass
class Context:
    """The state of one analysis, shared by all graphs of a model."""

    ids: ChannelIds = field(default_factory=ChannelIds)
    consumed: list[Array] = field(default_factory=list)
    """Ids of weight slices that read a channel: they go with it, but masking need not zero them as a rule."""
    silenced: list[Array] = field(default_factory=list)
    """Ids of weight slices that read a channel which is not zero while masked: masking must zero them."""
    shown: list[Array] = field(default_factory=list)
    """Ids of weight slices whose values enter an activation as they are: masking must zero them, consumed or not."""
    statistics: set[str] = field(default_factory=set)
    """Buffers of running statistics."""
    gammas: set[str] = field(default_factory=set)
    """Names of normalisation scales."""
    balances: list[tuple[Array, Reason]] = field(default_factory=list)
    """Equal parts (parts x size, ids): as many channels must go from each, and why one that has no partner stays."""
    parts: list[Array] = field(default_factory=list)
    """Subsets of channels that an op cut out: channels of a group are in the same ones, so that no part is emptied."""

    def reason(self, call: Call, text: str) -> Reason:
        """The reason, with op, module and source line of the call."""
        node = call.node
        return Reason(text, graph.op_name(node), node.meta.get("module", ""), node.meta.get("source", ""))

    def freeze(self, call: Call, facets: Tensor | Sequence[Tensor], text: str) -> None:
        """All channels in these facets stay."""
        for facet in [facets] if isinstance(facets, Tensor) else facets:
            self.ids.freeze(flat(facet), self.reason(call, text))

    def pin(self, call: Call, text: str) -> Facets:
        """All channels that reach this op stay; its result belongs to none."""
        for shadow in call.inputs:
            self.freeze(call, shadow.facets, text)
        return []

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Unite two facets of equal shape element by element; the caller has dealt with zeros."""
        one, two = _side_by_side(left, right)
        both = (one != 0) & (two != 0)
        self.ids.unite(np.abs(one[both]), np.abs(two[both]))

    def match(self, call: Call, left: Tensor, right: Tensor, text: str) -> Tensor:
        """Unite two facets of equal shape; where only one has a channel, it stays. Returns merged ids, unsigned."""
        one, two = (np.abs(side) for side in _side_by_side(left, right))
        if one.all() and two.all():
            self.ids.unite(one.reshape(-1), two.reshape(-1))
            return torch.from_numpy(one).expand(left.shape)
        held, other = one != 0, two != 0
        both, alone = held & other, held ^ other
        if alone.any():
            self.ids.freeze((one + two)[alone].astype(np.int64), self.reason(call, text))
        self.ids.unite(one[both], two[both])
        return torch.from_numpy(np.where(both, one, 0)).expand(left.shape)

    def balance(self, call: Call, parts: Sequence[Tensor]) -> None:
        """As many channels go from each of these lines; which with which is left open until all else is known."""
        ids = np.stack([part.abs().numpy().astype(np.int64) for part in parts])
        self.balances.append((ids, self.reason(call, "another part has no channel to go with it")))

    def vector(self, call: Call, shadow: Shadow, dim: int) -> Tensor | None:
        """The channel of each index along `dim` (negative: not zero while masked), None where no index has one.

        An index can only go as a whole: what lies beside it along other dimensions is united with it.
        """
        dim %= max(len(shadow.shape), 1)
        vector: Tensor | None = None
        for facet in shadow.facets:
            along = varying(facet)
            if dim not in along:
                continue
            line = self.level(call, facet, dim) if len(along) > 1 else straight(facet, dim)
            if vector is None:
                vector = line
            else:
                sign = torch.where((vector < 0) & (line < 0), -1, 1)
                vector = self.match(call, vector, line, "two different uses of one dimension meet") * sign
        return vector

    def level(self, call: Call, facet: Tensor, dim: int) -> Tensor:
        """Unite everything within each index of `dim`; a partly bare index stays. Returns the line."""
        rows = crop(facet).movedim(dim, 0).reshape(facet.shape[dim], -1)
        if rows.shape[1] == 1:
            return rows[:, 0]
        partial = (rows == 0).any(1) & (rows != 0).any(1)
        if bool(partial.any()):
            self.freeze(call, rows[partial], "only a part of this index belongs to a channel")
        whole = rows[~partial]
        left = whole[:, :1].expand(whole.shape)
        self.unite(left.contiguous(), whole.contiguous())
        line = rows[:, 0].abs() * torch.where((rows < 0).any(1), -1, 1)
        return torch.where(partial, 0, line).to(torch.int32)

    def collapse(self, call: Call, facet: Tensor, dims: Sequence[int]) -> Tensor:
        """The facet with `dims` cut to size 1: what lies along them goes together, or stays where a part of it does."""
        small = crop(facet)
        rest = [dim for dim in range(facet.dim()) if dim not in dims]
        rows = small.permute(*rest, *dims).reshape(*(small.shape[dim] for dim in rest), -1)
        first = rows[..., :1].expand(rows.shape).contiguous()
        united = self.match(call, first, rows.contiguous(), "meets elements that belong to no channel")
        partial = (rows == 0).any(-1) & (rows != 0).any(-1)
        if bool(partial.any()):
            self.freeze(call, rows[partial], "only a part of what meets here belongs to a channel")
        line = torch.where((rows < 0).any(-1), -united[..., 0], united[..., 0])
        line = torch.where(partial, 0, line).to(torch.int32)
        for dim in sorted(dims):
            line = line.unsqueeze(dim)
        shape = [1 if dim in dims else size for dim, size in enumerate(facet.shape)]
        return line.expand(shape)

    def read(self, call: Call, channels: Tensor, weights: Tensor) -> Tensor:
        """The channels that a consumer reads with these slices of its weights, those that stay dropped.

        A channel whose value is not zero while masked must not be seen: the mask zeroes the slices that read it. Where
        zeroing them would not silence it, the channel stays.
        """
        if channels.numpy().min(initial=0) == 0:
            return channels
        leaking = channels < 0
        self.silence(weights[leaking & (weights > 0)])
        stays = leaking & (weights <= 0)
        if bool(stays.any()):
            self.freeze(call, channels[stays], SEEN)
        return torch.where(stays, 0, channels)

    def silence(self, vector: Tensor) -> None:
        """Weight slices with these ids read a channel that is not zero while masked: the mask zeroes them too."""
        if vector.numel():
            self.silenced.append(vector.abs().numpy().astype(np.int64).reshape(-1))

    def consume(self, vector: Tensor) -> None:
        """Weight slices with these ids only read channels."""
        ids = flat(vector)
        self.consumed.append(ids[ids > 0])

    def pass_along(self, call: Call, shadow: Shadow, dims: dict[int, int], *, sign: int = 1, text: str) -> Facets:
        """Facets of `shadow` that vary only along the keys of `dims` go on to the given dimensions of the result; the
        channels of all others are frozen."""
        shape, kept = call.out.shape, []
        for facet in shadow.facets:
            along = varying(facet)
            if any(dim not in dims for dim in along):
                self.freeze(call, facet, text)
                continue
            small = crop(facet)
            order = sorted(along, key=lambda dim: dims[dim])
            view = [1] * len(shape)
            for dim in along:
                view[dims[dim]] = shadow.shape[dim]
            values = small.permute(*order, *[d for d in range(small.dim()) if d not in order]).reshape(view)
            kept.append(signed(values, sign).expand(shape))
        return [facet for facet in kept if not is_empty(facet)]


def _side_by_side(left: Tensor, right: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Two facets of equal shape along every dimension along which either varies. In numpy, which takes a fraction of
    the time that torch does for a few numbers."""
    if left.dim() == 1:
        return left.numpy(), right.numpy()
    dims = {*varying(left), *varying(right)}
    return crop(left, tuple(dims)).numpy(), crop(right, tuple(dims)).numpy()


def signed(facet: Tensor, sign: int) -> Tensor:
    """The facet as it is (1), or marked as not zero while masked (-1)."""
    return facet if sign > 0 else leaky(facet)


def line_facet(vector: Tensor | None, dim: int, shape: tuple[int, ...]) -> Facets:
    """The facets of a result whose channels lie along one dimension."""
    if vector is None or not vector.numpy().any():
        return []
    return [spread(vector, dim % len(shape), shape)]
