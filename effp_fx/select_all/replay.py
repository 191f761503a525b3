"""The replay itself: walks the post-processing once and writes a graph in which every selection selects everything.

A detector decodes only the boxes that it has selected, so boxes of every anchor are nowhere in its graph. They are what
the same ops give when each selection (threshold, top-k, sorting, suppression) lets everything pass in its order. Ops
that treat each row alike commute with a selection, so each row comes out as the model would compute it; whatever mixes
rows that a selection might have removed is refused.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from effp_fx import graph
from effp_fx.dense_part import Facts
from effp_fx.errors import ExportError
from effp_fx.graph import TensorInfo
from effp_fx.select_all import rules
from effp_fx.select_all.calls import REDUCES, argument, check_rows, needed
from effp_fx.select_all.joining import joined
from effp_fx.select_all.values import Known, Refusal, Rows, Value, new_sizes, on_meta, refusal

_RESHAPES = {"view", "reshape", "_unsafe_view", "expand", "broadcast_to"}


class Replay:
    """A graph in the making. `value(node)` is what a node of the old graph is in it."""

    def __init__(self, module: fx.GraphModule, facts: Facts, selected: set[fx.Node], wanted: list[fx.Node]) -> None:
        """Replay what `wanted` needs of `selected`, the nodes after the last choices; all else is copied."""
        self.result = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._module = module
        self._facts = facts
        # Also what only takes its shape from a selection.
        self._selected = {node for node in facts.nodes if node in selected}
        for node in facts.nodes:
            if any(source in self._selected for source in node.all_input_nodes):
                self._selected.add(node)
        self._copies: dict[fx.Node, fx.Node] = {}
        self._values: dict[fx.Node, Value | list[Value]] = {}
        demanded = self._demanded(wanted)
        for node in facts.nodes:
            if node in demanded and node in self._selected and node in facts.layers:
                raise self._error(node, "a layer")
        for node in facts.nodes:
            if node in self._selected and node in demanded:
                self._values[node] = self._replayed(node)
            elif node not in self._selected:
                self._copies[node] = self.result.node_copy(node, self._copies.__getitem__)

    def value(self, node: fx.Node) -> Value:
        """What a node that returns one tensor has become."""
        if node in self._values:
            found = self._values[node]
            if isinstance(found, list):
                raise Refusal("it returns several tensors")
            return found
        info = graph.info(node)
        return Rows(self._copies[node], info.shape, info.dtype)

    def rows(self, value: Value) -> Rows:
        """The value as a tensor of the new graph, with nothing put off."""
        if isinstance(value, Known):
            node = self.constant(value.tensor)
            return Rows(node, value.whole, value.tensor.dtype)
        if value.index is None:
            return value
        args = (value.node, value.dim, self.constant(value.index))
        return Rows(self.add(torch.ops.aten.index_select.default, args, value), value.whole, value.dtype)

    def constant(self, tensor: Tensor) -> fx.Node:
        """A node that reads a constant."""
        name = f"_replayed_{len(self.constants)}"
        self.constants[name] = tensor.contiguous()
        node = self.result.get_attr(name)
        node.meta["val"] = TensorInfo(tuple(tensor.shape), tensor.dtype)
        return node

    def add(self, target: Any, args: tuple[Any, ...], like: Rows | None = None) -> fx.Node:
        """A new op; its shape is worked out. `like` says which node it stands for in messages."""
        node = self.result.call_function(target, args)
        source = like.node if like is not None else next(iter(node.all_input_nodes))
        node.meta = {key: source.meta[key] for key in ("module", "module_type", "source") if key in source.meta}
        shapes = {item: graph.info(item) for item in node.all_input_nodes}
        node.meta["val"] = on_meta(target, args, {}, shapes)[0]
        return node

    def _demanded(self, wanted: list[fx.Node]) -> set[fx.Node]:
        found = set(wanted)
        for node in reversed(self._facts.nodes):
            if node in found and node in self._selected:
                found.update(needed(node))
        return found

    def _replayed(self, node: fx.Node) -> Value | list[Value]:
        try:
            return self._rule(node)
        except Refusal as why:
            raise self._error(node, str(why)) from why

    def _error(self, node: fx.Node, why: str) -> ExportError:
        if node in self._facts.layers:
            what = "the detector has two stages, and its second runs on the boxes that the first has selected"
            return refusal(what, graph.place(node), f"a layer after a selection ({graph.op_name(node)})")
        return refusal(f"{graph.op_name(node)} stands in the way", graph.place(node), why)

    def _rule(self, node: fx.Node) -> Value | list[Value]:
        name = graph.op_name(node).rpartition(".")[2]
        if name == "_getitem":
            return self._part(node)
        if name in rules.SORTS:
            return rules.sorted_values(name, self.value(_source(node)), argument(node, "dim", -1))
        if name == "nms":
            return Known(torch.arange(self.value(node.args[1]).whole[0]))  # type: ignore[arg-type]  # the scores
        if name in rules.ENUMERATES and len(node.all_input_nodes) == 1:
            return rules.enumerated(name, self.value(node.args[0]))  # type: ignore[arg-type]  # a tensor
        if name == "index_put" and graph.info(node).dtype is torch.bool:
            return Known(torch.ones(self.value(_source(node)).whole, dtype=torch.bool))
        if name in rules.GATHERS:
            return self._gather(node, name)
        if name in rules.LIKE:
            source: Any = node.args[0]
            args, kwargs = self._sized(node, node.args)[1:], node.kwargs
            whole, dtype = self.value(source).whole, graph.info(source).dtype
            return Known(rules.tensors_alike(node.target, args, kwargs, whole, dtype))
        if name == "slice" and self._truncates(node):
            return self.value(node.args[0])  # type: ignore[arg-type]  # a tensor
        return self._run(node, name)

    def _part(self, node: fx.Node) -> Value:
        """One of several results: of an op of the replay, or of one before it (the place of a maximum)."""
        source, at = node.args
        if source in self._values:
            return self._values[source][at]  # type: ignore[index]  # a list, a number
        info = graph.info(node)
        return Rows(self.result.node_copy(node, self._copies.__getitem__), info.shape, info.dtype)

    def _gather(self, node: fx.Node, name: str) -> Value:
        args: Any = node.args
        source = self.value(args[0])
        if name == "index":
            found, flattened = rules.indexed(source, [item and self._index(node, item) for item in args[1]])
            if not flattened:
                return found
            flat = self._flat(source, 0, flattened - 1)
            return rules.indexed(flat, [found])[0]
        if name == "masked_select":
            mask = rules.mask_of(self.value(args[1])).expand(source.whole)
            return rules.indexed(self._flat(source, 0, -1), [Known(mask.flatten())])[0]
        if name == "index_select":
            return rules.indexed(source, [None] * (args[1] % len(source.whole)) + [self._index(node, args[2])])[0]
        dim, index = (args[1], args[2]) if name == "gather" else (args[2], args[1])
        return rules.gathered(source, dim, self._index(node, index))

    def _flat(self, source: Value, first: int, last: int) -> Rows:
        rows = self.rows(source)
        node = self.add(torch.ops.aten.flatten.using_ints, (rows.node, first, last))
        return Rows(node, graph.info(node).shape, rows.dtype)

    def _index(self, node: fx.Node, index: fx.Node) -> Value:
        """An index; one that no selection made must not be for rows whose number has changed."""
        if index in self._selected:
            return self.value(index)
        if self.value(_source(node)).whole != graph.info(_source(node)).shape and graph.info(index).numel > 1:
            raise Refusal("an index that is written for the rows that were selected")
        return self._known(index)

    def _known(self, node: fx.Node) -> Known:
        """The numbers of a node that is the same for any input."""
        found = self._values.get(node)
        if isinstance(found, Known):
            return found
        if node not in self._facts.fixed:
            raise Refusal("an index that depends on the input")
        if node.op == "get_attr":
            return Known(graph.tensor_of(self._module, str(node.target)).detach())
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._number)
        return Known(node.target(*args, **kwargs))  # type: ignore[operator]  # an op

    def _number(self, node: fx.Node) -> Tensor:
        if node in self._facts.fixed or isinstance(self._values.get(node), Known):
            return self._known(node).tensor
        return torch.empty(graph.info(node).shape, dtype=graph.info(node).dtype)  # only its shape is looked at

    def _truncates(self, node: fx.Node) -> bool:
        """Whether the slice keeps the first of what was selected."""
        dim = argument(node, "dim", 0)
        recorded, now = graph.info(_source(node)).shape, self.value(_source(node)).whole
        if recorded[dim] == now[dim]:
            return False
        if argument(node, "start", 0) not in (0, None) or argument(node, "step", 1) != 1:
            raise Refusal("it leaves out the first of what was selected")
        return True

    def _run(self, node: fx.Node, name: str) -> Value | list[Value]:
        """Run an op on the grown values: on numbers where all are known, else in the new graph."""
        sources = node.all_input_nodes
        known = [source for source in sources if isinstance(self._values.get(source), Known)]
        if known and all(source in known or source in self._facts.fixed for source in sources):
            args, kwargs = fx.map_arg((self._sized(node, node.args), node.kwargs), self._number)
            found: Any = node.target(*args, **kwargs)  # type: ignore[operator]  # an op
            return [Known(part) for part in found] if isinstance(found, (list, tuple)) else Known(found)
        values = {source: self.value(source) for source in sources}
        if name in ("cat", "concat") and (made := joined(self.add, node, values)) is not None:
            return made
        return self._write(node, name, values)

    def _write(self, node: fx.Node, name: str, values: dict[fx.Node, Value]) -> Value | list[Value]:
        shapes = {source: TensorInfo(value.whole, rules.value_dtype(value)) for source, value in values.items()}
        whole = on_meta(node.target, self._sized(node, node.args), node.kwargs, shapes)
        check_rows(node, name, shapes, whole)
        later = next((value for value in values.values() if isinstance(value, Rows) and value.index is not None), None)
        if later is not None and name not in REDUCES and (dims := self._stays_late(node, values, whole)) is not None:
            return self._emit(node, {source: _compact(self, value) for source, value in values.items()}, later, dims)
        return self._emit(node, {source: self.rows(value) for source, value in values.items()}, None, [])

    def _stays_late(self, node: fx.Node, values: dict[fx.Node, Value], whole: list[TensorInfo]) -> list[int] | None:
        """Along which dimension of each result the gathering may be done after the op; None: it may not."""
        late = [value for value in values.values() if isinstance(value, Rows) and value.index is not None]
        first, place = late[0], late[0].dim - len(late[0].shape)
        same = all(
            value.dim - len(value.shape) == place and torch.equal(_index_of(value), _index_of(first)) for value in late
        )
        touched = [
            value
            for value in values.values()
            if value not in late and len(value.whole) >= -place and value.whole[place] > 1
        ]
        if not same or touched or first.shape[first.dim] == first.whole[first.dim]:
            return None
        shapes = {source: TensorInfo(_small(value), rules.value_dtype(value)) for source, value in values.items()}
        try:
            small = on_meta(node.target, self._sized(node, node.args, late=True), node.kwargs, shapes)
        except Refusal:
            return None
        dims = []
        for one, two in zip(small, whole, strict=True):
            differ = [at for at, (left, right) in enumerate(zip(one.shape, two.shape, strict=True)) if left != right]
            sizes = (first.shape[first.dim], first.whole[first.dim])
            if len(differ) != 1 or (one.shape[differ[0]], two.shape[differ[0]]) != sizes:
                return None
            dims.append(differ[0])
        return dims

    def _emit(
        self, node: fx.Node, rows: dict[fx.Node, Rows], later: Rows | None, dims: list[int]
    ) -> Value | list[Value]:
        shapes = {value.node: TensorInfo(value.shape, value.dtype) for value in rows.values()}
        args, kwargs = fx.map_arg(
            (self._sized(node, node.args, late=later is not None), node.kwargs), lambda item: rows[item].node
        )
        infos = on_meta(node.target, args, kwargs, shapes)
        made = self.result.call_function(node.target, args, kwargs)  # type: ignore[arg-type]  # an op
        made.meta = {**node.meta, "val": infos if len(graph.infos(node)) > 1 else infos[0]}
        parts = [made]
        if isinstance(node.meta.get("val"), list):
            made.meta["val"] = infos
            parts = [self.result.call_function(operator.getitem, (made, at)) for at in range(len(infos))]
            for part, info in zip(parts, infos, strict=True):
                part.meta = {**made.meta, "val": info}
        found: list[Value] = []
        for at, (part, info) in enumerate(zip(parts, infos, strict=True)):
            index, dim = (later.index, dims[at]) if later is not None else (None, 0)
            found.append(Rows(part, info.shape, info.dtype, index, dim))
        return found if isinstance(node.meta.get("val"), list) else found[0]

    def _sized(self, node: fx.Node, args: tuple[Any, ...], late: bool = False) -> tuple[Any, ...]:
        """The arguments with sizes that are written into the call adapted to what the source has become."""
        name = graph.op_name(node).rpartition(".")[2]
        grows = name in _RESHAPES or name.startswith("new_")
        if not grows or not args or args[0] not in self._selected:
            return args
        value = self.value(args[0])
        now = _small(value) if late else value.whole
        sizes: Any = args[1]
        return (args[0], new_sizes(list(sizes), graph.info(args[0]).shape, now), *args[2:])


def _index_of(value: Rows) -> Tensor:
    return value.index if value.index is not None else torch.arange(value.shape[value.dim])


def _small(value: Value) -> tuple[int, ...]:
    return value.shape if isinstance(value, Rows) else value.whole


def _compact(replay: Replay, value: Value) -> Rows:
    return value.plain() if isinstance(value, Rows) else replay.rows(value)


def _source(node: fx.Node) -> fx.Node:
    """The value that an op works on."""
    source: Any = node.args[0]  # fx allows anything; an op on tensors has a node there
    result: fx.Node = source
    return result
