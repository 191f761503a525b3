"""A read-only view over a captured graph: shapes, the source of each op, and a text that is the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of one tensor as it was when the model ran."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


def infos(node: fx.Node) -> list[TensorInfo | None]:
    """The outputs of `node`, one entry per element where it returns several (None: not a tensor)."""
    value = node.meta.get("val")
    if isinstance(value, list):
        return value
    return [value]


def info(node: fx.Node) -> TensorInfo:
    """The single tensor that `node` returns. Raises TypeError where it returns something else."""
    value = node.meta.get("val")
    if not isinstance(value, TensorInfo):
        raise TypeError(f"{node.name} returns {value!r}, not one tensor")
    return value


def op_name(node: fx.Node) -> str:
    """`aten.conv2d.default` -> `aten.conv2d`; the empty string for nodes that call no op."""
    if node.op != "call_function":
        return ""
    return _packet_name(node.target)


@cache
def _packet_name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    return str(getattr(target, "__name__", target)) if packet is None else str(packet)


def is_mutation(node: fx.Node) -> bool:
    """Whether the op writes into one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def place(node: fx.Node) -> str:
    """Where the op stands, for messages: `layer1.0.conv1 (resnet.py:92, in forward)`."""
    module, source = node.meta.get("module", ""), node.meta.get("source", "")
    return f"{module} ({source})" if module and source else module or source or node.name


def weights(graph_module: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """The nodes that read a parameter or buffer, with its qualified name."""
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            yield node, str(node.target)


def tensor_of(graph_module: fx.GraphModule, name: str) -> torch.Tensor:
    """The parameter, buffer or constant that a `get_attr` node of this name reads."""
    value: Any = graph_module
    for part in name.split("."):
        value = getattr(value, part)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, not a tensor")
    return value


def to_text(graph_module: fx.GraphModule) -> str:
    """The graph as lines, values renumbered from %0: equal graphs give equal text, so that a diff shows the change."""
    names: dict[fx.Node, str] = {}

    def show(value: Any) -> str:
        if isinstance(value, fx.Node):
            return names[value]
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(show(item) for item in value) + "]"
        return str(value).removeprefix("torch.")

    lines = []
    for node in graph_module.graph.nodes:
        names[node] = f"%{len(names)}"
        if node.op == "output":
            lines.append("return " + show(node.args[0]))
            continue
        if node.op == "placeholder":
            call = "input"
        elif node.op == "get_attr":
            call = f"read {node.target}"
        else:
            keywords = [f"{key}={show(value)}" for key, value in node.kwargs.items()]
            name = f".{node.target}" if node.op == "call_method" else op_name(node)
            call = f"{name}({', '.join([show(arg) for arg in node.args] + keywords)})"
        kinds = ", ".join(str(item) for item in infos(node))
        lines.append(f"{names[node]}: {kinds} = {call}")
    return "\n".join(lines)


_ALIKE_IN_TRAINING = {"aten.batch_norm", "aten.dropout", "aten.feature_dropout"}
"""Ops whose rows ask for no flag. Alpha dropout is none of them: in train mode its zeros are no zeros."""


def plain_call(node: fx.Node, of_node: Callable[[fx.Node], Any]) -> tuple[Any, ...]:
    """What a node calls, hashable: equal for calls that do the same but for flags (`training=True`) that make no
    difference to channels. `of_node` says what stands for an argument that is a node."""
    flags = op_name(node).removesuffix("_") not in _ALIKE_IN_TRAINING

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return ("node", of_node(value))
        if isinstance(value, (list, tuple)):
            return tuple(plain(item) for item in value)
        return "flag" if isinstance(value, bool) and not flags else (type(value), value)

    keywords = tuple((key, plain(value)) for key, value in node.kwargs.items())
    return node.op, node.op == "placeholder" or node.target, plain(node.args), keywords


def same_ops(left: fx.Graph, right: fx.Graph) -> bool:
    """Whether two graphs do the same but for flags (`training=True`) and counters (of batches seen) that make no
    difference to channels.

    What is true of the channels of one is then true of both.
    """
    one, two = _without_counters(left), _without_counters(right)
    if len(one) != len(two):
        return False
    place = {node: index for nodes in (one, two) for index, node in enumerate(nodes)}
    return all(
        plain_call(first, place.__getitem__) == plain_call(second, place.__getitem__)
        for first, second in zip(one, two, strict=True)
    )


def _without_counters(recorded: fx.Graph) -> list[fx.Node]:
    """The nodes but for those that count in a buffer of whole numbers (`steps.add_(1)`) and are read by no others."""
    nodes = list(recorded.nodes)
    counters: set[fx.Node] = set()
    for node in reversed(nodes):
        if node.users.keys() <= counters and (_counts(node) or (node.op == "get_attr" and node.users)):
            counters.add(node)
    return [node for node in nodes if node not in counters]


def _counts(node: fx.Node) -> bool:
    while is_mutation(node) and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        if node.op == "get_attr":
            return not info(node).dtype.is_floating_point
    return False
