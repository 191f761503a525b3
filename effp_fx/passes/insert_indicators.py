"""The graph with an indicator per channel: every weight that hands a channel out is multiplied by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, fx

from effp_fx import graph
from effp_fx.groups import Analysis, Channels, Graph
from effp_fx.passes.base import Pass, PassResult, copied, rebuilt

INDICATORS = "indicators"
"""The attribute of the new graph that holds them: float (K), 1 keeps a channel, 0 takes it out."""


@dataclass(frozen=True)
class InsertIndicators(Pass):
    """Multiply gamma and beta, filters, biases and tables by the indicator theta of their channel (Ko et al. 2024).

    The paper multiplies behind the batch norm; on the weights it is the same, needs no rule for what comes behind, and
    holds where there is no batch norm. The graph is differentiable in the indicators, and with zeros and ones in them
    it computes what the masked graph of the same channels does.
    """

    name: ClassVar[str] = "insert_indicators"

    def __call__(self, analysis: Analysis, part: Graph) -> PassResult:
        new_graph, table = copied(part)
        masked = [
            (node, name)
            for node, name in graph.weights(part.capture.graph_module)
            if name in analysis.tensors and analysis.tensors[name].masked
        ]
        with new_graph.inserting_before(next(node for node in new_graph.nodes if node.op != "placeholder")):
            held = new_graph.get_attr(INDICATORS)
            # What belongs to no channel reads the 1 at the end.
            padded = new_graph.call_function(torch.nn.functional.pad, (held, (0, 1)), {"value": 1.0})
        more = {INDICATORS: torch.ones(analysis.channels)}
        for node, name in masked:
            dims = analysis.tensors[name]
            weight = product = table[node]
            users = list(weight.users)
            for dim in sorted(dims.masked):
                # With its dots: `a.b_c` and `a_b.c` must not share a name.
                numbers = f"{INDICATORS}_of.{name}.{dim}"
                more[numbers] = _numbers(dims.dims[dim], analysis.channels)
                shape = [-1 if at == dim else 1 for at in range(len(dims.shape))]
                product = _multiplied(new_graph, product, padded, numbers, shape)
            for user in users:
                user.replace_input_with(weight, product)
        return PassResult(rebuilt(part, new_graph, {}, "Indicated", more), len(masked))


def _numbers(channels: Channels, count: int) -> Tensor:
    return torch.from_numpy(np.where(channels >= 0, channels, count))


def _multiplied(new_graph: fx.Graph, value: fx.Node, padded: fx.Node, numbers: str, shape: list[int]) -> fx.Node:
    """The value times the indicators of its channels, right behind the value."""
    with new_graph.inserting_after(value):
        index = new_graph.get_attr(numbers)
    with new_graph.inserting_after(index):
        chosen = new_graph.call_function(torch.index_select, (padded, 0, index))
    with new_graph.inserting_after(chosen):
        shaped = new_graph.call_function(torch.reshape, (chosen, shape))
    with new_graph.inserting_after(shaped):
        alike = new_graph.call_method("type_as", (shaped, value))  # a network in half precision stays in it
    with new_graph.inserting_after(alike):
        return new_graph.call_function(torch.mul, (value, alike))
