"""Rewrites a captured graph so that no op writes into memory: a write makes a new value, views of it are read anew.

Where a view lies in the memory it looks into is found by running the view on the numbers of the elements, so no view
needs a rule of its own. After that every dependence in the graph is an edge, and a node can be dropped safely.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from effp_fx import graph
from effp_fx.errors import ExportError
from effp_fx.graph import TensorInfo

IN_PLACE = "still_in_place"
"""Key in the meta of a node that could not be rewritten; its value says why."""

Block = tuple[slice, ...]

_ATEN = torch.ops.aten
_FULL = {"aten.fill_.Scalar", "aten.zero_.default"}
_COPIES = {"aten.copy_.default", "aten.fill_.Tensor"}
_NOTHING = {"aten.detach_.default", "aten.requires_grad_.default"}
_FRESH = 1 << 24
"""float32 counts exactly up to here: more elements are not numbered through an op that makes floats of them."""


def functional(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph that computes the same without writing into memory; the given one is left alone.

    Writes into parameters and buffers are seen by what reads them later in the graph, and are not kept.
    """
    rewriter = _Rewriter(graph_module)
    for node in graph_module.graph.nodes:
        rewriter.visit(node)
    rewriter.result.eliminate_dead_code()
    return fx.GraphModule({**_attributes(graph_module), **rewriter.constants}, rewriter.result, "Functional")


def _attributes(graph_module: fx.GraphModule) -> dict[str, Any]:
    return {name: graph.tensor_of(graph_module, name) for _, name in graph.weights(graph_module)}


class _Rewriter:
    """Copies a graph node by node; `_values` says what a node of the old graph is now, and since which write."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.result = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._roots: dict[int, fx.Node] = {}
        self._versions: Counter[int] = Counter()
        self._values: dict[fx.Node, tuple[int, fx.Node]] = {}

    def visit(self, node: fx.Node) -> None:
        storage = _storage(node)
        if storage is not None:
            self._roots.setdefault(storage, node)
        if node.op == "call_function" and graph.is_mutation(node):
            self._write(node, _target(node))
            return
        self._values[node] = (self._version(node), self.result.node_copy(node, self.now))

    def now(self, node: fx.Node) -> fx.Node:
        """The value of a node after all writes so far."""
        version, value = self._values[node]
        if version == self._version(node):
            return value
        parent = _parent(node)
        if parent is None:
            raise AssertionError(f"{node.name} is the memory itself, yet out of date")
        if graph.is_mutation(node):
            value = self.now(parent)
        elif _is_part(node):
            source, index = node.args
            again = self.result.node_copy(source, self.now)  # type: ignore[arg-type]  # a part's source is a node
            value = self.result.node_copy(node, lambda _: again)
            value.args = (again, index)
        else:
            value = self.result.node_copy(node, self.now)
        self._values[node] = (self._version(node), value)
        return value

    def _version(self, node: fx.Node) -> int:
        storage = _storage(node)
        return 0 if storage is None else self._versions[storage]

    def _write(self, node: fx.Node, target: fx.Node) -> None:
        value = self._written(node, target)
        storage = _storage(target)
        if storage is None:
            self._values[node] = (0, value)
            return
        root = self._roots[storage]
        whole = value if _is_whole(target) else self._put(node, root, target, value)
        self._versions[storage] += 1
        for alias, now in ((root, whole), (target, value), (node, value)):
            self._values[alias] = (self._versions[storage], now)

    def _written(self, node: fx.Node, target: fx.Node) -> fx.Node:
        """What the op leaves in its target, as a new value."""
        name, before = str(node.target), self.now(target)
        if name in _NOTHING:
            return before
        wanted = graph.info(target)
        if name in _FULL:
            fill = node.args[1] if len(node.args) > 1 else 0
            return self._add(node, _ATEN.full_like.default, (before, fill), wanted)
        if name in _COPIES:
            return self._fit(node, self.now(node.args[1]), graph.info(node.args[1]), wanted)  # type: ignore[arg-type]  # a tensor
        twin = _twin(node)
        if twin is None:
            value = self.result.node_copy(node, self.now)
            value.meta[IN_PLACE] = f"{name} has no form that leaves its argument alone"
            return value
        value = self.result.node_copy(node, self.now)
        value.target = twin
        value.meta["val"] = wanted
        dtypes = {item.dtype for source in node.all_input_nodes for item in graph.infos(source) if item is not None}
        if any(dtype.is_floating_point and dtype != wanted.dtype for dtype in dtypes):
            value = self._add(node, _ATEN.to.dtype, (value, wanted.dtype), wanted)
        return value

    def _fit(self, node: fx.Node, value: fx.Node, given: TensorInfo, wanted: TensorInfo) -> fx.Node:
        if given.dtype != wanted.dtype:
            value = self._add(node, _ATEN.to.dtype, (value, wanted.dtype), TensorInfo(given.shape, wanted.dtype))
        if given.shape != wanted.shape:
            value = self._add(node, _ATEN.expand.default, (value, list(wanted.shape)), wanted)
        return value

    def _put(self, node: fx.Node, root: fx.Node, target: fx.Node, value: fx.Node) -> fx.Node:
        """The memory `root` with `value` where the view `target` looks."""
        before, whole = self.now(root), graph.info(root)
        try:
            places = _places(target, root)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:  # a view that only some dtypes have
            value.meta[IN_PLACE] = f"where {graph.op_name(target)} looks into its memory is not known: {error}"
            return value
        numbers = torch.arange(whole.numel).reshape(whole.shape)
        if places.numel() == whole.numel and torch.equal(places.flatten(), numbers.flatten()):
            return self._reshape(node, value, whole)
        block = _block(places, whole.shape)
        if torch.equal(numbers[block].flatten(), places.flatten()):
            return self._put_block(node, before, value, block, whole)
        return self._put_anywhere(node, before, value, places, whole)

    def _put_block(self, node: fx.Node, before: fx.Node, value: fx.Node, block: Block, whole: TensorInfo) -> fx.Node:
        """From the last dimension to the first, join what stands before the block, the block, and what stands after."""
        shape = [part.stop - part.start for part in block]
        now = self._reshape(node, value, TensorInfo(tuple(shape), whole.dtype))
        for dim in reversed(range(len(shape))):
            if shape[dim] == whole.shape[dim]:
                continue
            around = before
            for outer in range(dim):
                around = self._cut(node, around, outer, block[outer].start, block[outer].stop)
            pieces = [now]
            if block[dim].start > 0:
                pieces.insert(0, self._cut(node, around, dim, 0, block[dim].start))
            if block[dim].stop < whole.shape[dim]:
                pieces.append(self._cut(node, around, dim, block[dim].stop, whole.shape[dim]))
            shape[dim] = whole.shape[dim]
            now = self._add(node, _ATEN.cat.default, (pieces, dim), TensorInfo(tuple(shape), whole.dtype))
        return now

    def _put_anywhere(
        self, node: fx.Node, before: fx.Node, value: fx.Node, places: Tensor, whole: TensorInfo
    ) -> fx.Node:
        name = f"_places_{len(self.constants)}"
        self.constants[name] = places.flatten()
        line = TensorInfo((whole.numel,), whole.dtype)
        index = self.result.get_attr(name)
        index.meta["val"] = TensorInfo((places.numel(),), torch.int64)
        flat = self._reshape(node, before, line)
        values = self._reshape(node, value, TensorInfo((places.numel(),), whole.dtype))
        return self._reshape(node, self._add(node, _ATEN.scatter.src, (flat, 0, index, values), line), whole)

    def _cut(self, node: fx.Node, source: fx.Node, dim: int, start: int, stop: int) -> fx.Node:
        info = graph.info(source)
        if (start, stop) == (0, info.shape[dim]):
            return source
        shape = (*info.shape[:dim], stop - start, *info.shape[dim + 1 :])
        return self._add(node, _ATEN.slice.Tensor, (source, dim, start, stop), TensorInfo(shape, info.dtype))

    def _reshape(self, node: fx.Node, source: fx.Node, wanted: TensorInfo) -> fx.Node:
        if graph.info(source).shape == wanted.shape:
            return source
        return self._add(node, _ATEN.reshape.default, (source, list(wanted.shape)), wanted)

    def _add(self, node: fx.Node, target: Any, args: tuple[Any, ...], info: TensorInfo) -> fx.Node:
        """An op of ours, said to stand where the op stands that it is made for."""
        made = self.result.call_function(target, args)
        made.meta = {key: node.meta[key] for key in ("module", "module_type", "source") if key in node.meta}
        made.meta["val"] = info
        return made


def _storage(node: fx.Node) -> int | None:
    storage = node.meta.get("storage")
    return storage if isinstance(storage, int) else None


def _is_part(node: fx.Node) -> bool:
    """Whether the node takes one result out of an op that returns several."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "_getitem"


def _parent(node: fx.Node) -> fx.Node | None:
    """The value that the node is a view of; None where it is the memory itself."""
    if node.op != "call_function":
        return None
    sources = node.args[0].all_input_nodes if _is_part(node) else node.all_input_nodes  # type: ignore[union-attr]  # a node
    return next((source for source in sources if _storage(source) == _storage(node)), None)


def _is_whole(node: fx.Node) -> bool:
    """Whether the node is the memory itself, maybe written to before, and no view of it."""
    while graph.is_mutation(node):
        node = _target(node)
    return _parent(node) is None


def _target(node: fx.Node) -> fx.Node:
    """The argument that the op writes into. Raises ExportError where there are several."""
    arguments: Any = node.target._schema.arguments  # type: ignore[union-attr]  # only ops of torch.library mutate
    written = [index for index, item in enumerate(arguments) if item.alias_info and item.alias_info.is_write]
    index = written[0]
    target = node.args[index] if index < len(node.args) else node.kwargs.get(arguments[index].name)
    if len(written) != 1 or not isinstance(target, fx.Node):
        raise ExportError(f"{graph.op_name(node)} writes into several tensors at once", where=graph.place(node))
    return target


def _twin(node: fx.Node) -> Any:
    """The op that returns what this one writes into its first argument; None where there is none."""
    schema: Any = node.target._schema  # type: ignore[union-attr]  # only ops of torch.library mutate
    namespace, _, name = schema.name.partition("::")
    if schema.arguments[0].alias_info is None or not name.endswith("_"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    return getattr(packet, schema.overload_name or "default", None)


def _places(node: fx.Node, root: fx.Node) -> Tensor:
    """For each element of a view the number of the element of `root` that it is."""
    info = graph.info(root)
    if node is root:
        return torch.arange(info.numel).reshape(info.shape)
    parent = _parent(node)
    if parent is None or graph.op_name(node) == "aten.as_strided":
        raise ValueError("its strides are not in the graph")
    numbers = _places(parent, root)
    if graph.is_mutation(node):
        return numbers

    def argument(source: fx.Node) -> Tensor:
        return numbers if source is parent else torch.empty(graph.info(source).shape)

    call: fx.Node = node.args[0] if _is_part(node) else node  # type: ignore[assignment]  # a part's source is a node
    args, kwargs = fx.map_arg((call.args, call.kwargs), argument)
    result: Any = call.target(*args, **kwargs)  # type: ignore[operator]  # an op
    found: Tensor = result[node.args[1]] if _is_part(node) else result
    if found.is_floating_point() and info.numel > _FRESH:
        raise ValueError("too many elements to number")
    return found.long()


def _block(places: Tensor, shape: Sequence[int]) -> Block:
    """The smallest rectangle of `shape` that holds all these elements."""
    where = torch.unravel_index(places.flatten(), tuple(shape))
    return tuple(slice(int(line.min()), int(line.max()) + 1) for line in where)
