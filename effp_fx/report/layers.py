"""The layers of a traced model, one row each in the order in which they run: what they cost, lose and must keep."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import fx

from effp_fx import cost, graph
from effp_fx.groups import Analysis, Frozen, Keep, TensorDims, kept_flags


@dataclass(frozen=True)
class LayerRow:
    """One layer that runs and has weights, or that costs FLOPs without any (the product of an attention).

    `_after` is what a plan leaves; without one it is what there is. FLOPs: 2 per multiply-accumulate.
    """

    layer: str
    kind: str
    channels: int
    """Output channels; 0 for a layer without weights."""
    channels_after: int
    groups: tuple[str, ...]
    gammas: tuple[str, ...]
    """The norm scales by which the output channels are judged."""
    flops: float
    flops_after: float
    params: int
    params_after: int
    frozen: int
    """Output channels that stay."""
    why: str
    train_only: bool = False

    @property
    def is_contraction(self) -> bool:
        """Whether it is a layer that makes channels, not one that follows: it costs FLOPs."""
        return self.flops > 0


@dataclass(frozen=True)
class FrozenCause:
    """A reason for which channels stay, over all layers."""

    reason: str
    channels: int
    layers: tuple[str, ...]
    flops: float
    """What the frozen channels cost in the dense model, each layer by its frozen part."""
    place: str


def layer_rows(analysis: Analysis, keep: Keep | None = None) -> tuple[LayerRow, ...]:
    """The rows of a model, in the order in which the layers run in eval mode, then those that run in train mode only.

    Args:
        analysis: of the dense model.
        keep: (channels,) the channels that a plan keeps; None keeps all.
    """
    return tuple(_Layers(analysis, analysis.keep_all() if keep is None else keep).rows())


def frozen_causes(analysis: Analysis) -> tuple[FrozenCause, ...]:
    """The reasons for which channels stay, the costliest first."""
    rows = {row.layer: row for row in layer_rows(analysis)}
    by_reason: defaultdict[str, list[tuple[float, Frozen]]] = defaultdict(list)
    for item in analysis.frozen:
        row = rows.get(layer_of(item.tensor))
        share = min(item.channels / row.channels, 1.0) if row and row.channels else 0.0
        by_reason[item.reason].append((share * row.flops if row else 0.0, item))
    causes = []
    for reason, found in by_reason.items():
        found.sort(key=lambda pair: -pair[0])
        largest = found[0][1]
        layers = tuple(dict.fromkeys(layer_of(item.tensor) for _, item in found))
        place = ", ".join(part for part in (largest.op, largest.module, largest.source) if part)
        channels = sum(item.channels for _, item in found)
        causes.append(FrozenCause(reason, channels, layers, sum(part for part, _ in found), place))
    return tuple(sorted(causes, key=lambda cause: (-cause.flops, -cause.channels, cause.reason)))


def layer_of(tensor: str) -> str:
    """The module that holds a weight; what a parametrisation holds belongs to the module it parametrises."""
    path = tensor.rpartition(".")[0]
    return path.partition(".parametrizations.")[0] if ".parametrizations." in path else path or tensor


class _Layers:
    def __init__(self, analysis: Analysis, keep: Keep) -> None:
        self.analysis = analysis
        self.keep = keep
        self.starts = [group.start for group in analysis.groups]
        self.frozen = {item.tensor: item for item in analysis.frozen}
        self.out_dims = {
            part.tensor: part.dim for group in analysis.groups for part in group.slices if part.role == "out"
        }
        self.tensors: defaultdict[str, list[str]] = defaultdict(list)
        for name in analysis.tensors:
            self.tensors[layer_of(name)].append(name)

    def rows(self) -> Iterator[LayerRow]:
        before, after = self._flops(self.analysis.keep_all()), self._flops(self.keep)
        for layer, train_only in self._order.items():
            names = [name for name in self.tensors[layer] if self._matters(name)]
            if names or before.get(layer):
                yield self._row(layer, names, before.get(layer, 0.0), after.get(layer, 0.0), train_only)

    def _row(self, layer: str, names: list[str], flops: float, flops_after: float, train_only: bool) -> LayerRow:
        tensors = self.analysis.tensors
        parameters = [tensors[name] for name in names if tensors[name].is_parameter]
        params = sum(math.prod(tensor.shape) for tensor in parameters)
        left = sum(math.prod(self._shape_after(tensor)) for tensor in parameters)
        kind = self._kinds.get(layer, "")
        if not names:
            return LayerRow(layer, kind, 0, 0, (), (), flops, flops_after, params, left, 0, "", train_only)
        # The weight with the most dimensions is the one that makes the channels; of equals, the first.
        main = max(names, key=lambda name: len(tensors[name].shape))
        item = self.frozen.get(main)
        dim = self.out_dims.get(main, item.dim if item else 0)
        shape = tensors[main].shape or (1,)
        after = (self._shape_after(tensors[main]) or (1,))[dim]
        groups, gammas = self._groups(tensors[main], dim)
        stay, why = (item.channels, _reason(item)) if item else (0, "")
        return LayerRow(
            layer, kind, shape[dim], after, groups, gammas, flops, flops_after, params, left, stay, why, train_only
        )

    def _matters(self, name: str) -> bool:
        tensor = self.analysis.tensors[name]
        return tensor.is_parameter or bool(tensor.dims)

    def _shape_after(self, tensor: TensorDims) -> tuple[int, ...]:
        return tuple(
            int(np.count_nonzero(kept_flags(tensor.dims[dim], self.keep))) if dim in tensor.dims else size
            for dim, size in enumerate(tensor.shape)
        )

    def _groups(self, tensor: TensorDims, dim: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        channels = tensor.dims.get(dim)
        if channels is None:
            return (), ()
        first = np.unique(channels[channels >= 0]).tolist()
        numbers = dict.fromkeys(bisect_right(self.starts, channel) - 1 for channel in first)
        found = [self.analysis.groups[number] for number in numbers]
        gammas = dict.fromkeys(gamma for group in found for gamma in group.gammas)
        return tuple(group.name for group in found), tuple(gammas)

    def _flops(self, keep: Keep) -> dict[str, float]:
        """By layer that holds the weight: the op may be called by another module, as attention does with its output."""
        flops = cost.flops(self.analysis)
        sums: defaultdict[str, float] = defaultdict(float)
        for layer, value in zip(self._term_layers, flops.term_costs(flops.counts(keep)).tolist(), strict=True):
            sums[layer] += value
        return sums

    @cached_property
    def _term_layers(self) -> list[str]:
        nodes = {node.name: node for node in self._eval_nodes()}
        return [self._weight_layer(nodes.get(term.node)) or term.layer for term in self.analysis.flop_terms]

    def _weight_layer(self, node: fx.Node | None) -> str:
        read = [] if node is None else [str(part.target) for part in node.all_input_nodes if part.op == "get_attr"]
        owned = [name for name in read if name in self.analysis.tensors and len(self.analysis.tensors[name].shape) > 1]
        return layer_of(owned[0]) if owned else ""

    @cached_property
    def _order(self) -> dict[str, bool]:
        """Layer -> whether it runs in train mode only. An analysis without graphs has the order of its terms."""
        order: dict[str, bool] = {}
        layers = dict(zip((term.node for term in self.analysis.flop_terms), self._term_layers, strict=True))
        for part in sorted(self.analysis.graphs, key=lambda part: part.capture.train):
            for node in part.capture.graph.nodes:
                if node.op == "get_attr" and str(node.target) in self.analysis.tensors:
                    order.setdefault(layer_of(str(node.target)), part.capture.train)
                elif not part.capture.train and node.name in layers:
                    order.setdefault(layers[node.name], False)
        for layer in self._term_layers:
            order.setdefault(layer, False)
        return order

    @cached_property
    def _kinds(self) -> dict[str, str]:
        kinds: dict[str, str] = {}
        users: dict[str, str] = {}
        for part in self.analysis.graphs:
            for node in part.capture.graph.nodes:
                if node.meta.get("module_type"):
                    kinds.setdefault(node.meta["module"], node.meta["module_type"])
                for read in node.all_input_nodes:
                    if read.op == "get_attr":
                        users.setdefault(layer_of(str(read.target)), graph.op_name(node).removeprefix("aten."))
        return {**users, **kinds}

    def _eval_nodes(self) -> Iterator[fx.Node]:
        parts = [part for part in self.analysis.graphs if not part.capture.train] or list(self.analysis.graphs)
        for part in parts[:1]:
            yield from part.capture.graph.nodes


def _reason(item: Frozen) -> str:
    place = ", ".join(part for part in (item.op, item.source) if part)
    return f"{item.reason} ({place})" if place else item.reason
