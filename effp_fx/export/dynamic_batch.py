"""Frees the batch size of a captured graph: what differs between two batch sizes is computed from the input.

A recorded graph holds sizes as numbers. Two recordings, one with three times the batch, are read in step; a number that
is three times as large in the second is a multiple of the batch. In a reshape it becomes -1, elsewhere it is computed
from the size of the first input. What differs in any other way cannot be freed.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from effp_fx import graph
from effp_fx.dense_part import DensePart
from effp_fx.errors import EffpError, ExportError
from effp_fx.inputs import Example, repeat_batch

TIMES = 3
"""How much larger the second recording's batch is. Not 2: much code in the wild has a 2 of its own."""

_RESHAPES = {"aten.view", "aten.reshape", "aten._unsafe_view"}
_CREATIONS = {"aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full"}


@dataclass(frozen=True)
class FreeBatch:
    """A network for any batch size, and the larger example that it was recorded on."""

    part: DensePart
    example: Example
    free_inputs: tuple[dict[int, str], ...]
    free_outputs: tuple[dict[int, str], ...]


Find = Callable[[nn.Module, Example], DensePart]
"""Records a model on inputs and cuts a part out."""


def free_batch(model: nn.Module, example: Example, part: DensePart, find: Find) -> FreeBatch:
    """A part of `model` for any batch size, from `part`, which `find` cut out for `example`, and a second recording.

    Raises:
        ExportError: the model takes a list of images, or what it computes depends on the batch in another way.
    """
    _check_inputs(example)
    larger = repeat_batch(example, TIMES)
    try:
        second = find(model, larger)
    except EffpError as error:
        raise _refusal("the model does not run on a larger batch", seen=f"batch times {TIMES}: {error.what}") from error
    if _differs(part, second) is not None:
        # A model that keeps tables it computed in a cache runs fewer ops from the second time on.
        part = find(model, example)
    where = _differs(part, second)
    if where is not None:
        sizes = [len(one.graph_module.graph.nodes) for one in (part, second)]
        seen = f"{sizes[0]} ops, then {sizes[1]} for {TIMES} times the batch"
        raise _refusal("the model runs other ops for another batch size", seen=seen, where=graph.place(where))
    pairs = list(zip(part.graph_module.graph.nodes, second.graph_module.graph.nodes, strict=True))
    inputs = [_free_dims(one, two, pairs) for one, two in pairs if one.op == "placeholder"]
    if not inputs or 0 not in inputs[0]:
        raise _refusal("the first input has no batch dimension", seen=str(graph.infos(pairs[0][0])[0]))
    outputs = tuple(_free_dims(one, two, pairs) for one, two in zip(_results(part), _results(second), strict=True))
    _Rewriter(second.graph_module, pairs).run()
    return FreeBatch(second, larger, tuple(inputs), outputs)


def _check_inputs(example: Example) -> None:
    for value in [*example.args, *example.kwargs.values()]:
        if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
            raise _refusal(
                "a model that takes a list of images has no batch dimension to free",
                seen=f"a {type(value).__name__} of {len(value)}",
            )


def _refusal(what: str, *, seen: str | None = None, where: str | None = None) -> ExportError:
    return ExportError(what, where=where, seen=seen, mend="export with dynamic_batch=False, one file per batch size")


def _differs(one: DensePart, two: DensePart) -> fx.Node | None:
    """The first op of `one` that is another in `two`."""
    nodes = [list(part.graph_module.graph.nodes) for part in (one, two)]
    left: fx.Node
    for left, right in zip(*nodes, strict=False):
        if str(left.target) != str(right.target):
            return left
    last: fx.Node = nodes[0][-1]
    return None if len(nodes[0]) == len(nodes[1]) else last


def _results(part: DensePart) -> list[fx.Node]:
    return list(part.graph_module.graph.output_node().args[0])  # type: ignore[arg-type]  # the tuple it returns


def _free_dims(one: fx.Node, two: fx.Node, pairs: list[tuple[fx.Node, fx.Node]]) -> dict[int, str]:
    batch = graph.info(pairs[0][0]).shape[0]
    free = {}
    for dim, (size, larger) in enumerate(zip(graph.info(one).shape, graph.info(two).shape, strict=True)):
        if size != larger:
            free[dim] = "batch" if size == batch else f"batch_x_{size // batch}"
    return free


class _Rewriter:
    """Replaces, in the graph of the larger recording, every size that grew with the batch."""

    def __init__(self, module: fx.GraphModule, pairs: list[tuple[fx.Node, fx.Node]]) -> None:
        self._module = module
        self._pairs = pairs
        self._first = pairs[0][1]
        self._batch = graph.info(self._first).shape[0]
        self._sizes: dict[int, fx.Node] = {}

    def run(self) -> None:
        for one, two in self._pairs:
            if one.op == "get_attr" and one.meta.get("val") != two.meta.get("val"):
                raise _refusal("a constant of the model grows with the batch", where=graph.place(one))
            if one.op == "call_function" and list(_numbers(one)) != list(_numbers(two)):
                self._free(one, two)
        self._module.graph.lint()
        self._module.recompile()

    def _free(self, one: fx.Node, two: fx.Node) -> None:
        name = graph.op_name(two)
        with self._module.graph.inserting_before(two):
            if name in _RESHAPES:
                made = self._reshape(two, self._grown(one, two, 1))
            elif name in {"aten.expand", "aten.repeat"}:
                made = self._call(name.removeprefix("aten."), two, self._grown(one, two, 1))
            elif name in _CREATIONS:
                made = self._create(two, 1 if name.startswith("aten.new_") else 0, one)
            elif name == "aten.slice":
                made = self._slice(one, two)
            else:
                raise _refusal(f"{name} depends on the batch size", where=graph.place(two), seen=str([*_numbers(two)]))
        if made is not two:
            made.meta = dict(two.meta)
            two.replace_all_uses_with(made)
            self._module.graph.erase_node(two)

    def _grown(self, one: fx.Node, two: fx.Node, position: int) -> dict[int, int]:
        """Entries of a list of sizes that grew with the batch: index -> multiple of the batch size."""
        small: Any = one.args[position]
        large: Any = two.args[position]
        rest = [[*node.args[:position], *node.args[position + 1 :], *node.kwargs.values()] for node in (one, two)]
        plain = [list(_leaves(item)) for item in rest]
        if not isinstance(large, (list, tuple)) or len(small) != len(large) or plain[0] != plain[1]:
            raise _refusal(f"{graph.op_name(two)} depends on the batch size", where=graph.place(two))
        grown = {index: size for index, size in enumerate(large) if size != small[index]}
        if any(size != TIMES * small[index] or size % self._batch for index, size in grown.items()):
            raise _refusal(
                f"{graph.op_name(two)} has a size that is no multiple of the batch",
                where=graph.place(two),
                seen=f"sizes {list(small)}, then {list(large)} for {TIMES} times the batch",
            )
        return {index: size // self._batch for index, size in grown.items()}

    def _reshape(self, node: fx.Node, grown: dict[int, int]) -> fx.Node:
        sizes = list(node.args[1])  # type: ignore[arg-type]  # the list of sizes
        if len(grown) == 1 and -1 not in sizes:
            sizes[next(iter(grown))] = -1
            node.args = (node.args[0], sizes)
            return node
        return self._call("reshape", node, grown)

    def _call(self, method: str, node: fx.Node, grown: dict[int, int]) -> fx.Node:
        """The method of a tensor: unlike the op it takes sizes that are themselves being recorded."""
        sizes: Any = list(node.args[1])  # type: ignore[arg-type]  # the list of sizes
        source: fx.Node = node.args[0]  # type: ignore[assignment]  # a tensor
        given = graph.info(source).shape
        for index, multiple in grown.items():
            own = index - len(sizes) + len(given)
            keeps = method == "expand" and own >= 0 and given[own] == sizes[index]
            sizes[index] = -1 if keeps else self._size(multiple)
        return self._module.graph.call_method(method, (source, *sizes))

    def _create(self, node: fx.Node, position: int, one: fx.Node) -> fx.Node:
        """A constant of batch 1, expanded."""
        grown = self._grown(one, node, position)
        sizes: Any = list(node.args[position])  # type: ignore[arg-type]  # the list of sizes
        small = [1 if index in grown else size for index, size in enumerate(sizes)]
        args = (*node.args[:position], small, *node.args[position + 1 :])
        made = self._module.graph.call_function(node.target, args, node.kwargs)  # type: ignore[arg-type]  # an op
        made.meta = dict(node.meta)
        whole = [self._size(grown[index]) if index in grown else -1 for index in range(len(sizes))]
        return self._module.graph.call_method("expand", (made, *whole))

    def _slice(self, one: fx.Node, two: fx.Node) -> fx.Node:
        """Up to the end, where the end is what grew."""
        source, dim, start, end, *step = two.args
        size = graph.info(source).shape[dim]  # type: ignore[arg-type,index]  # a tensor, its dimension
        if start != one.args[2] or end != size or step != list(one.args[4:]):
            raise _refusal("a slice depends on the batch size", where=graph.place(two))
        two.args = (source, dim, start, sys.maxsize, *step)
        return two

    def _size(self, multiple: int) -> fx.Node:
        """The batch size times `multiple`, computed from the first input."""
        if multiple not in self._sizes:
            last = [node for node in self._module.graph.nodes if node.op == "placeholder"][-1]
            with self._module.graph.inserting_after(self._sizes.get(1, last)):
                if multiple == 1:
                    made = self._module.graph.call_method("size", (self._first, 0))
                else:
                    made = self._module.graph.call_function(operator.mul, (self._size(1), multiple))
            self._sizes[multiple] = made
        return self._sizes[multiple]


def _numbers(node: fx.Node) -> Iterator[Any]:
    """Everything in a call that is no tensor."""
    for item in [*node.args, *node.kwargs.values()]:
        yield from _leaves(item)


def _leaves(item: Any) -> Iterator[Any]:
    if isinstance(item, (list, tuple)):
        yield len(item)
        for part in item:
            yield from _leaves(part)
    elif not isinstance(item, fx.Node):
        yield item
