"""What every pass is: a frozen dataclass from an annotated graph to a graph, checked after it ran."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from effp_fx import graph
from effp_fx.groups import Analysis, Graph


@dataclass(frozen=True)
class PassResult:
    """A new graph module; the one that went in is untouched."""

    graph_module: fx.GraphModule
    changed: int
    """Ops and weights that are not as they were."""


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A transformation of one captured graph. Its fields are its options."""

    name: ClassVar[str]

    @abc.abstractmethod
    def __call__(self, analysis: Analysis, part: Graph) -> PassResult:
        """Return the transformed graph."""


Observer = Callable[[Pass, PassResult, float], None]


def run(steps: Sequence[Pass], analysis: Analysis, part: Graph, observe: Observer | None = None) -> list[PassResult]:
    """Run each pass on the captured graph, check its result, and tell the observer how long it took, in seconds."""
    results = []
    for step in steps:
        begin = time.perf_counter()
        result = step(analysis, part)
        result.graph_module.graph.lint()
        results.append(result)
        if observe is not None:
            observe(step, result, time.perf_counter() - begin)
    return results


def rebuilt(
    part: Graph, new_graph: fx.Graph, weights: dict[str, Tensor], title: str, more: dict[str, Tensor] | None = None
) -> fx.GraphModule:
    """A graph module over `new_graph` with these weights in place of the captured ones of the same name.

    `more`: tensors by names that the captured graph does not have.
    """
    source = part.capture.graph_module
    attributes: dict[str, Tensor] = dict(more or {})
    for _, name in graph.weights(source):
        tensor = graph.tensor_of(source, name)
        value = weights.get(name, tensor)
        if isinstance(tensor, torch.nn.Parameter) and not isinstance(value, torch.nn.Parameter):
            value = torch.nn.Parameter(value, requires_grad=tensor.requires_grad)
        attributes[name] = value
    return fx.GraphModule(attributes, new_graph, title)


def copied(part: Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of the captured graph, and the map from its nodes to the new ones."""
    new_graph = fx.Graph()
    table: dict[fx.Node, fx.Node] = {}
    output = new_graph.graph_copy(part.capture.graph_module.graph, table)
    new_graph.output(output)
    return new_graph, table
