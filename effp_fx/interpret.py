"""Walks captured graphs once with shadows in place of tensors; unites or freezes channels as the ops' rows say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from effp_fx import graph, ops, settle
from effp_fx.capture import Capture
from effp_fx.channel_ids import ChannelIds, Owner, Reason
from effp_fx.ops.context import Call, Context, Facets
from effp_fx.ops.shadow import Shadow, flat, spread, varying

Shadows = dict[fx.Node, list[Shadow]]


@dataclass
class Interpretation:
    """The state of an analysis: one set of ids for all graphs of a model, and the shadows of every value."""

    shapes: dict[str, tuple[int, ...]]
    """Parameters and buffers of floating type, in the model's order."""
    context: Context = field(default_factory=Context)
    owners: dict[str, list[Owner]] = field(default_factory=dict)
    graphs: list[tuple[Capture, Shadows]] = field(default_factory=list)
    repeats: list[set[fx.Node]] = field(default_factory=list)
    """Of each graph the nodes that do what one of an earlier graph does, with the same channels."""
    notes: list[str] = field(default_factory=list)
    facets: settle.Facets = field(default_factory=settle.Facets)
    """What the graphs hold, once settled."""
    _known: dict[Any, list[list[Shadow]]] = field(default_factory=dict)
    """The calls of earlier graphs, see `_call` -> what each came to, in the order of the calls. Nothing is taken out:
    a shadow that is named by its id must live."""
    _bare: dict[tuple[tuple[int, ...], bool], Shadow] = field(default_factory=dict)
    """Shadows without facets, by what there is to them."""
    _marks: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """For each id whether the op at hand reads a channel with it; all False between ops."""

    def __post_init__(self) -> None:
        for name, shape in self.shapes.items():
            ids = self.context.ids
            self.owners[name] = [ids.new(name, dim, size) for dim, size in enumerate(shape) if size > 1]

    @property
    def ids(self) -> ChannelIds:
        """All ids of the model."""
        return self.context.ids

    def walk(self, capture: Capture) -> None:
        """Interpret one graph; what several graphs teach is joined, and what one has taught is not learnt again."""
        shadows: Shadows = {}
        self.graphs.append((capture, shadows))
        self.repeats.append(set())
        made: list[tuple[Any, list[Shadow]]] = []
        taken: Counter[Any] = Counter()
        aliases = _Aliases(capture.graph)
        leaving = _leads_out(capture.graph)
        for node in capture.graph.nodes:
            if node.op == "output":
                self._freeze_outputs(node, shadows)
                continue
            if node in leaving:
                self._freeze_inputs(node, shadows)
            if _is_bare(node, shadows):
                shadows[node] = self._without_channels(node, shadows)
            else:
                call = _call(node, shadows)
                known = self._known.get(call, [])
                if taken[call] < len(known):
                    shadows[node] = list(known[taken[call]])
                    self.repeats[-1].add(node)
                else:
                    shadows[node] = self._made(node, shadows)
                    made.append((call, list(shadows[node])))
                taken[call] += 1
            if graph.is_mutation(node):
                aliases.written(self.context, node, shadows)
        for call, result in made:
            self._known.setdefault(call, []).append(result)

    def _made(self, node: fx.Node, shadows: Shadows) -> list[Shadow]:
        if node.op == "get_attr":
            return [self._weight(node)]
        return [Shadow(graph.info(node).shape)] if node.op == "placeholder" else self._op(node, shadows)

    def freeze_unused(self) -> None:
        """Weights that no graph reads: nothing is known of them, so they stay as they are."""
        used = {name for capture, _ in self.graphs for name in capture.used}
        for name, owners in self.owners.items():
            if name in used:
                continue
            for owner in owners:
                self.ids.freeze(
                    np.arange(owner.start, owner.stop), Reason("does not run on the example inputs", module=name)
                )

    def settle(self) -> None:
        """Make every value rectangular, and empty none."""
        self.facets = settle.collect(shadows for _, shadows in self.graphs)
        settle.settle(self.context, self.facets)

    def _weight(self, node: fx.Node) -> Shadow:
        shape, name = graph.info(node).shape, str(node.target)
        owners = self.owners.get(name, [])
        facets = tuple(
            spread(torch.arange(owner.start, owner.stop, dtype=torch.int32), owner.dim, shape) for owner in owners
        )
        return Shadow(shape, facets, from_input=False)

    def _freeze_outputs(self, node: fx.Node, shadows: Shadows) -> None:
        for source in node.all_input_nodes:
            reason = Reason(
                "reaches the model's output", "output", source.meta.get("module", ""), source.meta.get("source", "")
            )
            for shadow in shadows[source]:
                for facet in shadow.facets:
                    self.ids.freeze(flat(facet), reason)

    def _freeze_inputs(self, node: fx.Node, shadows: Shadows) -> None:
        for source in node.all_input_nodes:
            for index, shadow in enumerate(shadows[source]):
                if not shadow.facets:
                    continue
                for facet in shadow.facets:
                    self.ids.freeze(flat(facet), _reason(node, "leads to the model's output, no layer reads it"))
                shadows[source][index] = Shadow(shadow.shape, (), shadow.from_input)

    def _without_channels(self, node: fx.Node, shadows: Shadows) -> list[Shadow]:
        """One shadow for all that is alike: two graphs compare theirs by identity."""
        from_input = _from_input(node, shadows)
        found = []
        for value in graph.infos(node):
            key = (value.shape, from_input) if value else ((), True)
            found.append(self._bare.setdefault(key, Shadow(*key[:1], from_input=key[1])))
        return found

    def _op(self, node: fx.Node, shadows: Shadows) -> list[Shadow]:
        if graph.op_name(node) == "_getitem":
            source, index = node.args
            return [shadows[source][index]]  # type: ignore[index]  # as the recorder wrote them
        outputs = graph.infos(node)
        from_input = _from_input(node, shadows)
        before = len(self.context.consumed)
        results = self._apply(Call(node, shadows), len(outputs))
        if from_input:
            self._show_weights(node, shadows, before)
        return [
            Shadow(value.shape, tuple(self._checked(node, facets, value.shape)), from_input) if value else Shadow(())
            for value, facets in zip(outputs, results, strict=True)
        ]

    def _show_weights(self, node: fx.Node, shadows: Shadows, before: int) -> None:
        """Note which ids of weights an activation is made of, those that this op only reads channels with left out."""
        ids = [
            flat(facet)
            for source in node.all_input_nodes
            for shadow in shadows[source]
            if not shadow.from_input
            for facet in shadow.facets
        ]
        if ids:
            own = np.concatenate(ids)
            if len(self._marks) < len(self.ids):
                self._marks = np.zeros(len(self.ids), dtype=np.bool_)
            for read in self.context.consumed[before:]:
                self._marks[read] = True
            self.context.shown.append(own[~self._marks[own]])
            for read in self.context.consumed[before:]:
                self._marks[read] = False

    def _apply(self, call: Call, outputs: int) -> list[Facets]:
        row = ops.find(call.node)
        if row is None:
            self.context.pin(call, "an op that the compiler has no row for")
            return [[] for _ in range(outputs)]
        try:
            result = row.rule(self.context, call)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            # A form of the op that its row does not foresee: keeping its channels is always right.
            self.notes.append(
                f"{graph.op_name(call.node)} at {graph.place(call.node)}: {type(error).__name__}: {error}"
            )
            self.context.pin(call, "a form of this op that its row does not cover")
            return [[] for _ in range(outputs)]
        if result and isinstance(result[0], list):
            lists: list[Facets] = list(result)
            return lists + [[] for _ in range(outputs - len(lists))]
        if not result and outputs > 1:
            return [[] for _ in range(outputs)]
        return [result, *([] for _ in range(outputs - 1))]  # type: ignore[list-item]  # a list of facets: looked at above

    def _checked(self, node: fx.Node, facets: Iterable[Tensor], shape: tuple[int, ...]) -> list[Tensor]:
        kept = []
        for facet in facets:
            if tuple(facet.shape) != shape:
                raise AssertionError(
                    f"{node.name}: a facet of shape {tuple(facet.shape)} for a tensor of shape {shape}"
                )
            if varying(facet):
                kept.append(facet)
                continue
            self.ids.freeze(flat(facet), _reason(node, "a whole tensor would be left empty"))
        return kept


def _from_input(node: fx.Node, shadows: Shadows) -> bool:
    sources = node.all_input_nodes
    return not sources or any(shadow.from_input for source in sources for shadow in shadows[source])


def _is_bare(node: fx.Node, shadows: Shadows) -> bool:
    """Whether an op has nothing to do with channels."""
    if node.op != "call_function" or any(shadow.facets for item in node.all_input_nodes for shadow in shadows[item]):
        return False
    row = ops.find(node)
    return graph.op_name(node) != "_getitem" and not (row and row.creates)


def _call(node: fx.Node, shadows: Shadows) -> Any:
    """Equal for two nodes of two graphs whose rules would see the same: op, arguments, place, shapes and shadows."""
    call = graph.plain_call(node, lambda source: tuple(id(shadow) for shadow in shadows[source]))
    name = str(node.target) if node.op != "call_function" else ""
    place = node.meta.get("module"), node.meta.get("source")
    return call, name, place if node.op == "call_function" else (), tuple(graph.infos(node))


class _Aliases:
    """Which values share memory, so that a write through one is seen through the others."""

    def __init__(self, recorded: fx.Graph) -> None:
        self._order = {node: index for index, node in enumerate(recorded.nodes)}
        self._members: dict[int, list[fx.Node]] = {}
        for node in self._order:
            storage = node.meta.get("storage")
            for number in storage if isinstance(storage, list) else [storage]:
                if number is not None:
                    self._members.setdefault(number, []).append(node)

    def written(self, context: Context, node: fx.Node, shadows: Shadows) -> None:
        """After an op that writes: other views of that memory that are read later must show the same channels.

        Where the write changes which channels the memory holds, every channel in sight stays: both readings are right
        then.
        """
        target = node.args[0] if node.args else None
        if not isinstance(target, fx.Node) or len(shadows[node]) != 1:
            return
        others = [
            other
            for other in self._members.get(target.meta.get("storage"), [])  # type: ignore[arg-type]  # None finds nothing
            if other is not target
            and other is not node
            and self._order[other] < self._order[node]
            and self._read_later(other, node)
        ]
        before, after = shadows[target][0], shadows[node][0]
        if not others or _alike(before, after):
            return
        reason = _reason(node, "is written into memory that is also read through another view")
        for view in [target, node, *others]:
            for shadow in shadows[view]:
                for facet in shadow.facets:
                    context.ids.freeze(flat(facet), reason)
        for source in node.all_input_nodes:
            for shadow in shadows[source]:
                for facet in shadow.facets:
                    context.ids.freeze(flat(facet), reason)

    def _read_later(self, node: fx.Node, writer: fx.Node) -> bool:
        return any(self._order[user] > self._order[writer] for user in node.users)


def _leads_out(recorded: fx.Graph) -> set[fx.Node]:
    """The ops after the last layer: what they compute reaches the output and is read by no contraction any more."""
    read: set[fx.Node] = set()
    reaches: set[fx.Node] = set()
    for node in reversed(recorded.nodes):
        row = ops.find(node) if node.op == "call_function" else None
        if node.op == "output" or any(user in reaches for user in node.users):
            reaches.add(node)
        if (row is not None and row.kind == "make") or any(user in read for user in node.users):
            read.add(node)
    return {node for node in reaches - read if node.op == "call_function"}


def _alike(left: Shadow, right: Shadow) -> bool:
    return len(left.facets) == len(right.facets) and all(
        torch.equal(one, two) for one, two in zip(left.facets, right.facets, strict=True)
    )


def _reason(node: fx.Node, text: str) -> Reason:
    return Reason(text, graph.op_name(node), node.meta.get("module", ""), node.meta.get("source", ""))
