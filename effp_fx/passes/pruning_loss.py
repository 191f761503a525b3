"""The pruning loss as nodes of an FX graph: equations (1) to (3) of EFFP, over indicators read off the weights."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx

from effp_fx.cost import Cost
from effp_fx.groups import Analysis, Graph
from effp_fx.passes.base import Pass, PassResult, copied, rebuilt
from effp_fx.sites import Site

_PREFIX = "pruning_"
REFERENCE = f"{_PREFIX}reference"
"""The buffer of the new graph that holds the magnitude that counts as 1, for each channel."""
_TINY = 1e-30
"""Keeps the slope of a square root finite at a filter of zeros."""


@dataclass(frozen=True, eq=False)
class PruningLoss(Pass):
    """Append the pruning loss of Ko et al. (AICAS 2024) to the outputs of a graph.

    With m_c the magnitude of channel c (mean |gamma| of its sites, or the L2 norm of its filters, over a reference):

        theta_c  = 1 where m_c >= threshold, else 0          its slope is that of m_c: straight through
        k_f      = kept share of factor f, the channels of one side of a layer
        F_pruned = sum over layers l of k_in(l) * k_out(l) * F_l                   (1), and (2) for parameters
        L_prune  = sum over the targets of max(0, F_pruned / F - F_target / F)     (3)

    (1) and (2) are the paper's. Ours: the reference, the slope, coupled gammas as their mean, the norm as a stand-in,
    and the form of (3): a hinge, whose slope by theta is the layer's marginal cost and which is silent at the target.

    Attributes:
        costs: by name, what each target is about.
        targets: by name, absolute.
        sites: where magnitudes are read.
        reference: float (K), the magnitude that counts as 1.
        tensors: the parameters by name; those of the captured graph, where they are in it.
        threshold: of theta, above 0.
        alone: leave the network out. The graph then has no inputs, and the outputs (loss, one cost per target in the
            order of `costs`, magnitudes (K) over the reference); otherwise the loss comes last behind the network's.
    """

    name: ClassVar[str] = "pruning_loss"
    costs: Mapping[str, Cost]
    targets: Mapping[str, float]
    sites: Sequence[Site]
    reference: Tensor
    tensors: Mapping[str, Tensor]
    threshold: float
    alone: bool = False

    def __call__(self, analysis: Analysis, part: Graph) -> PassResult:
        if self.alone:
            writer = _Writer(fx.Graph())
            loss, costs, magnitudes = self._write(writer)
            writer.graph.output((loss, *costs, magnitudes))
            weights = {site.tensor: self.tensors[site.tensor] for site in self.sites}
            module = fx.GraphModule({**weights, **writer.constants}, writer.graph, "PruningLoss")
            return PassResult(module, len(writer.graph.nodes))
        new_graph, _ = copied(part)
        output = next(iter(reversed(new_graph.nodes)))
        before = len(new_graph.nodes)
        writer = _Writer(new_graph)
        with new_graph.inserting_before(output):
            loss, _, _ = self._write(writer)
        output.args = ((*output.args[0], loss),)
        more = {**{site.tensor: self.tensors[site.tensor] for site in self.sites}, **writer.constants}
        return PassResult(rebuilt(part, new_graph, {}, "WithPruningLoss", more), len(new_graph.nodes) - before)

    def _write(self, writer: _Writer) -> tuple[fx.Node, list[fx.Node], fx.Node]:
        magnitudes = writer.call(torch.div, self._magnitudes(writer), writer.constant("reference", self.reference))
        above = writer.call(operator.ge, magnitudes, self.threshold)
        hard = writer.graph.call_method("to", (above, torch.float64))
        # The value of the step, the slope of the magnitude.
        soft = writer.call(torch.sub, magnitudes, writer.graph.call_method("detach", (magnitudes,)))
        theta = writer.call(torch.add, hard, soft)
        kept, losses = [], []
        for name, cost in self.costs.items():
            pruned = _cost(writer, name, cost, theta)
            kept.append(pruned)
            if name in self.targets:
                over = writer.call(operator.truediv, writer.call(operator.sub, pruned, self.targets[name]), cost.dense)
                losses.append(writer.call(torch.relu, over))
        total = losses[0]
        for loss in losses[1:]:
            total = writer.call(torch.add, total, loss)
        return total, kept, magnitudes

    def _magnitudes(self, writer: _Writer) -> fx.Node:
        """The magnitude of each channel (K): sums over all sites of a kind at once, and no loop over layers."""
        channels = len(self.reference)
        gammas = [site for site in self.sites if site.is_gamma]
        filters = [site for site in self.sites if not site.is_gamma]
        parts = []
        if gammas:
            summed = _summed(writer, gammas, torch.abs, channels, "gamma")
            entries = np.bincount(np.concatenate([site.channels + 1 for site in gammas]), minlength=channels + 1)[1:]
            parts.append(writer.call(torch.div, summed, writer.constant("gammas", np.maximum(entries, 1.0))))
        if filters:
            summed = _summed(writer, filters, torch.square, channels, "filter")
            root = writer.call(torch.sqrt, writer.call(torch.add, summed, _TINY))
            owners = np.zeros(channels + 1)
            owners[np.concatenate([site.channels for site in filters])] = 1.0
            parts.append(writer.call(torch.mul, root, writer.constant("has_filter", owners[:channels])))
        return parts[0] if len(parts) == 1 else writer.call(torch.add, *parts)


class _Writer:
    """Adds calls to a graph, and remembers the constants that they read."""

    def __init__(self, new_graph: fx.Graph) -> None:
        self.graph = new_graph
        self.constants: dict[str, Tensor] = {}

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def constant(self, name: str, value: Any) -> fx.Node:
        self.constants[_PREFIX + name] = torch.as_tensor(value)
        return self.graph.get_attr(_PREFIX + name)


def _summed(writer: _Writer, sites: Sequence[Site], measure: Any, channels: int, kind: str) -> fx.Node:
    """For each channel the sum of a measure over its entries in these sites (K), in float64.

    Vectors are joined before they are measured: a network has a hundred gammas, and this runs before every step.
    """
    vectors = [site for site in sites if site.rank == 1]
    others = [site for site in sites if site.rank > 1]
    rows = []
    if vectors:
        joined = _joined(writer, [writer.graph.get_attr(site.tensor) for site in vectors])
        rows.append(writer.graph.call_method("to", (writer.call(measure, joined), torch.float64)))
    for site in others:
        axes = [axis for axis in range(site.rank) if axis != site.dim]
        value = writer.call(torch.sum, writer.call(measure, writer.graph.get_attr(site.tensor)), axes)
        rows.append(writer.graph.call_method("to", (value, torch.float64)))
    numbers = np.concatenate([site.channels for site in (*vectors, *others)])
    index = writer.constant(f"{kind}_channels", np.where(numbers >= 0, numbers, channels))
    zeros = writer.constant(f"{kind}_zeros", np.zeros(channels + 1))
    # What belongs to no channel lands behind the last, and is cut off.
    summed = writer.call(torch.index_add, zeros, 0, index, _joined(writer, rows))
    return writer.call(torch.narrow, summed, 0, 0, channels)


def _joined(writer: _Writer, rows: list[fx.Node]) -> fx.Node:
    return rows[0] if len(rows) == 1 else writer.call(torch.cat, rows)


def _cost(writer: _Writer, name: str, cost: Cost, theta: fx.Node) -> fx.Node:
    """Equations (1) and (2), k_in * k_out * F_l summed, with counts in place of the shares and the cost of one pair of
    channels in place of F_l: whole numbers, so that a target which is met is met to the last bit, and the hinge off.
    """
    entries = writer.call(
        torch.mul,
        writer.constant(f"{name}_weights", cost.entry_weight),
        writer.call(torch.index_select, theta, 0, writer.constant(f"{name}_channels", cost.entry_channel)),
    )
    base, factor = (
        writer.constant(f"{name}_base", cost.base),
        writer.constant(f"{name}_factors", cost.entry_factor),
    )
    counts = writer.call(torch.index_add, base, 0, factor, entries)
    slots = writer.call(torch.index_select, counts, 0, writer.constant(f"{name}_slots", cost.slots.reshape(-1)))
    of_layers = writer.call(torch.prod, writer.call(torch.reshape, slots, list(cost.slots.shape)), 1)
    layers = writer.constant(f"{name}_layers", cost.constants)
    return writer.call(torch.sum, writer.call(torch.mul, layers, of_layers))
