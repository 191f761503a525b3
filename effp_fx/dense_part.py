"""Cuts the dense part out of a captured graph: all up to the last tensors that carry no post-processing.

Post-processing is what is computed from *choices* made on values that weights computed (top-k, sorting, suppression,
comparisons), where no layer follows any more. A choice that a layer does follow, such as the queries a transformer
picks, is part of the network as long as its result has a fixed shape; one whose result has not, such as the boxes that
survive suppression, never is. Without post-processing the outputs are the model's own. Otherwise they are the raw
heads: the last tensors that a layer computed, after the reshapes and joins that only move them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn

from effp_fx import graph, ops, value_names
from effp_fx.capture import Capture
from effp_fx.errors import ExportError
from effp_fx.functional import IN_PLACE, functional
from effp_fx.inputs import Example

_SORTING = {"topk", "sort", "msort", "kthvalue", "median", "nanmedian", "mode"}
_UNSHAPED = {"torchvision.nms", "aten.where.default", "aten.nonzero_numpy", "aten.argwhere", "aten.unique_consecutive"}
_SHAPE_ONLY = {
    "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.rand_like", "aten.randn_like",
    "aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty",
}  # fmt: skip
_MOVEMENT = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "squeeze",
    "unsqueeze", "contiguous", "cat", "concat", "stack", "detach", "alias", "clone",
}  # fmt: skip


@dataclass(frozen=True)
class DensePart:
    """The network without its post-processing."""

    graph_module: fx.GraphModule
    """Takes the tensors of the example that it reads, returns a flat tuple. Shares its weights with the model."""
    inputs: tuple[str, ...]
    taken: tuple[int, ...]
    """For each input its number among the tensors of the example."""
    outputs: tuple[str, ...]
    own_outputs: bool
    """Whether the outputs are those of the model, in its order."""
    chosen: tuple[bool, ...]
    """For each output whether a choice inside the network decides its order: near ties may fall otherwise elsewhere."""


@dataclass(frozen=True)
class Facts:
    """What is known of the nodes of a graph."""

    nodes: list[fx.Node]
    fixed: set[fx.Node]
    """The same for any input: parameters, buffers, and what is computed from nothing else."""
    layered: set[fx.Node]
    """Values that a layer had a part in."""
    layers: set[fx.Node]
    """Ops that apply a parameter to a value."""
    choices: set[fx.Node]
    unshaped: set[fx.Node]
    """Downstream of a choice whose result has a shape that depends on values."""


def find(capture: Capture, example: Example) -> DensePart:
    """The dense part of a model captured in eval mode on `example`.

    Raises:
        ExportError: nothing is left but post-processing, or an in-place op has no functional form.
    """
    module = functional(capture.graph_module)
    facts = facts_of(module)
    leading, tainted = split(facts)
    results = list(module.graph.output_node().args[0])  # type: ignore[arg-type]  # the tuple that capture wrote
    own = not any(node in tainted for node in results)
    outputs = results if own else _heads(facts, leading - tainted)
    if not outputs:
        raise ExportError(
            "there is no dense part to export: no layer stands before the post-processing",
            seen=f"{len(facts.layers)} layers among {len(facts.nodes)} ops",
        )
    chosen = after(facts.nodes, lambda node: node in facts.choices)
    part = extract(module, outputs)
    read = {node.name for node in placeholders(part)}
    taken = tuple(index for index, node in enumerate(placeholders(module)) if node.name in read)
    names = value_names.of_inputs(example)
    return DensePart(
        part,
        tuple(names[index] for index in taken),
        taken,
        value_names.of_outputs(outputs, facts.layers, capture.out_spec if own else None),
        own,
        tuple(node in chosen for node in outputs),
    )


def split(facts: Facts) -> tuple[set[fx.Node], set[fx.Node]]:
    """What layers still follow, and what comes after the last choices: the network and its post-processing."""
    leading = before(facts.nodes, lambda node: node in facts.layers and node not in facts.unshaped)
    last = (facts.choices - leading) | facts.unshaped
    return leading, after(facts.nodes, lambda node: node in last)


def placeholders(module: fx.GraphModule) -> list[fx.Node]:
    """The inputs of a graph."""
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def facts_of(module: fx.GraphModule) -> Facts:
    """Look at every node of a functional graph once."""
    nodes = [node for node in module.graph.nodes if node.op != "output"]
    fixed = {node for node in nodes if node.op == "get_attr"}
    weighted = {node for node in fixed if isinstance(graph.tensor_of(module, str(node.target)), nn.Parameter)}
    for node in nodes:
        if node.op == "call_function" and all(source in fixed for source in _sources(node)):
            fixed.add(node)
            if any(source in weighted for source in _sources(node)):
                weighted.add(node)
    layers = {node for node in nodes if node not in fixed and any(source in weighted for source in _sources(node))}
    layered = after(nodes, lambda node: node in layers)
    choices = {node for node in nodes if node.op == "call_function" and _is_choice(node, layered)}
    unshaped = after(nodes, lambda node: node in choices and _is_unshaped(node))
    return Facts(nodes, fixed, layered, layers, choices, unshaped)


def _sources(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values the op reads; what only looks at a shape reads none."""
    return [] if graph.op_name(node) in _SHAPE_ONLY else node.all_input_nodes


def after(nodes: list[fx.Node], start: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The nodes that `start` picks, and all that is computed from them."""
    found: set[fx.Node] = set()
    for node in nodes:
        if start(node) or any(source in found for source in _sources(node)):
            found.add(node)
    return found


def before(nodes: list[fx.Node], start: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The nodes that `start` picks, and all that they are computed from."""
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in found or start(node):
            found.add(node)
            found.update(_sources(node))
    return found


def _is_choice(node: fx.Node, layered: set[fx.Node]) -> bool:
    """Whether the op makes something discrete of real values that a layer computed: an order, an index, a truth."""
    sources = [source for source in _sources(node) if source in layered]
    if not any(_is_real(item) for source in sources for item in graph.infos(source)):
        return bool(sources) and _is_unshaped(node)
    if graph.op_name(node).rpartition(".")[2] in _SORTING or _is_unshaped(node):
        return True
    value = node.meta.get("val")
    return isinstance(value, graph.TensorInfo) and not _is_real(value)


def _is_real(item: graph.TensorInfo | None) -> bool:
    return item is not None and (item.dtype.is_floating_point or item.dtype.is_complex)


def _is_unshaped(node: fx.Node) -> bool:
    """Whether the shape of the result depends on values."""
    if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
        if graph.op_name(node) != "aten.index":
            return True
        indices = [item for item in node.args[1] if isinstance(item, fx.Node)]  # type: ignore[union-attr]  # a list
        return any(graph.info(item).dtype in (torch.bool, torch.uint8) for item in indices)
    return str(node.target) in _UNSHAPED or graph.op_name(node) in _UNSHAPED


def _heads(facts: Facts, core: set[fx.Node]) -> list[fx.Node]:
    """The last values of the core: those that something outside it needs for the model's output."""
    used = before([*facts.nodes, next(iter(facts.nodes)).graph.output_node()], lambda node: node.op == "output")
    core = {node for node in core if node.op == "call_function" and node not in facts.fixed}
    core |= {node for node in facts.nodes if _takes_part(node) and node.args[0] in core}

    def outside(node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if user in used and user not in core and node in _sources(user)]

    moved: set[fx.Node] = set()
    for node in facts.nodes:
        if node in core or node not in used or not (_moves(node) or _is_unary(node)):
            continue
        sources = [source for source in _sources(node) if source not in facts.fixed]
        if sources and all(source in core and outside(source) == [node] for source in sources):
            core.add(node)
            moved.add(node)
    core -= _not_joined(facts.nodes, moved)
    return [node for node in facts.nodes if node in core & facts.layered and _is_tensor(node) and outside(node)]


def _not_joined(nodes: list[fx.Node], moved: set[fx.Node]) -> set[fx.Node]:
    """Of what was added to the core, the activations that no join of several values follows, and what comes after them.

    An activation between a layer and the join of its levels belongs to the head; one after the join is the first step
    of the post-processing.
    """
    joined: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in moved and (len(_sources(node)) > 1 or any(user in joined for user in node.users)):
            joined.add(node)
    loose = after([node for node in nodes if node in moved], lambda node: not _moves(node) and node not in joined)
    return loose & moved


def _moves(node: fx.Node) -> bool:
    return graph.op_name(node).removeprefix("aten.") in _MOVEMENT


def _is_unary(node: fx.Node) -> bool:
    """Whether the op computes each element from the same element of one tensor."""
    sources = node.all_input_nodes
    row = ops.find(node) if node.op == "call_function" and len(sources) == 1 else None
    return row is not None and row.kind == "pass" and graph.infos(node) == graph.infos(sources[0])


def _takes_part(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "_getitem"


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), graph.TensorInfo)


def extract(module: fx.GraphModule, outputs: Iterable[fx.Node]) -> fx.GraphModule:
    """A module of just what the outputs need. Raises ExportError where that writes into memory."""
    outputs = list(outputs)
    needed: set[fx.Node] = set(outputs)
    for node in reversed(module.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    result = fx.Graph()
    now: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node not in needed:
            continue
        if IN_PLACE in node.meta or (node.op == "call_function" and graph.is_mutation(node)):
            raise ExportError(
                f"{graph.op_name(node)} writes into memory in a way that ONNX cannot express",
                where=graph.place(node),
                seen=node.meta.get(IN_PLACE),
                mend="write that line with an op that returns a new tensor",
            )
        now[node] = result.node_copy(node, now.__getitem__)
    result.output(tuple(now[node] for node in outputs))
    attributes = {name: graph.tensor_of(module, name) for node, name in graph.weights(module) if node in needed}
    return fx.GraphModule(attributes, result, "DensePart")
