"""Finds sizes that are written in Python: lowers a trial copy, runs it, compares every op with what was expected.

The graph cannot tell whether `split((64, 64, 128))` was computed or typed in. Where the trial differs from what was
expected, an integer attribute of a module near by that holds the old size is rebound, and the trial runs again; where
no attribute explains it, the channels concerned are frozen, with the place as the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from effp_fx import binding, graph
from effp_fx.capture import Recording, replay
from effp_fx.channel_ids import Reason
from effp_fx.groups import Analysis, ChannelGroup, Channels, Graph, Keep, kept_flags
from effp_fx.plan import Plan, from_keep
from effp_fx.watcher import OpKey, Step


@dataclass(frozen=True)
class SizeRule:
    """An attribute of a module that holds a size: `old` times the share of `channels` that is kept."""

    module: str
    attribute: str
    index: int | None
    old: int
    channels: Channels

    def value(self, keep: Keep) -> int:
        """The size for a plan."""
        return max(1, self.old * int(kept_flags(self.channels, keep).sum()) // len(self.channels))


@dataclass(frozen=True)
class Mismatch:
    """The first op at which the trial was not what the analysis expects."""

    node: fx.Node
    position: int
    last: Step | None
    sizes: tuple[tuple[int, int, Channels], ...]
    """(dense size, expected size, channels) of the dimensions around the op that should have changed."""
    text: str

    @property
    def channels(self) -> Channels:
        """Every channel that the op handles."""
        found = [channels[channels >= 0] for _, _, channels in self.sizes]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)

    def reason(self) -> Reason:
        """Why these channels are frozen."""
        source = self.last.source if self.last and self.last.source else self.node.meta.get("source", "")
        return Reason(
            f"a size is written in Python: {self.text}",
            graph.op_name(self.node),
            self.node.meta.get("module", ""),
            source,
        )


class _EnoughSeen(Exception):
    """Ends a trial run: what follows handles no channels."""


def trial_keep(analysis: Analysis, seed: int = 0) -> Keep:
    """A mask under which every group loses some channels, as different a number of them as possible."""
    random = np.random.default_rng(seed)
    keep = analysis.keep_all()
    for index, group in enumerate(analysis.groups):
        share = 0.35 + 0.3 * ((index * 0.618 + 0.17 * seed) % 1.0)
        lost = min(max(1, round(group.channels * share)), group.channels - 1)
        keep[group.start + random.choice(group.channels, lost, replace=False)] = False
    return keep


def attributes_for(model: nn.Module, analysis: Analysis, rules: Sequence[SizeRule], keep: Keep) -> binding.Attributes:
    """Everything that has to be rebound for a plan: by convention, and by what the trials found."""
    found = binding.layer_attributes(model, binding.new_shapes(analysis, keep))
    modules = dict(model.named_modules())
    for rule in rules:
        value: Any = rule.value(keep)
        if rule.index is not None:
            old = found.get(rule.module, {}).get(rule.attribute, getattr(modules[rule.module], rule.attribute))
            value = [value if index == rule.index else item for index, item in enumerate(old)]
            value = tuple(value) if isinstance(old, tuple) else value
        if value != getattr(modules[rule.module], rule.attribute):
            found.setdefault(rule.module, {})[rule.attribute] = value
    return found


@dataclass(frozen=True)
class Trial:
    """A model lowered by a mask, to be run beside one captured graph of it."""

    model: nn.Module
    analysis: Analysis
    part: Graph
    rules: Sequence[SizeRule]
    keep: Keep
    slices: binding.Slices = field(default_factory=binding.Slices)
    """What the copies of one trial and of those made from it (`dataclasses.replace`) have in common."""
    outlines: binding.Slices = field(default_factory=lambda: binding.Slices(outlines=True))
    """The same of those that run without values."""

    def run(self, stop: int | None = None) -> Mismatch | None:
        """Lower a copy and run it against the captured graph. None: every op (up to `stop`) was as expected.

        The first run computes no products. It is believed where all shapes were as expected to the last; else values
        may have had a part in it, and a run with all of them decides, unless none has a part in the graph.
        """
        attributes = attributes_for(self.model, self.analysis, self.rules, self.keep)
        plan = from_keep(self.analysis, self.keep, attributes, summary={})
        follower, recording = self._follow(plan, stop, shapes_only=True)
        if follower.found is None and follower.position > follower.last:
            return None
        if self.part.capture.reads_values:
            follower, recording = self._follow(plan, stop, shapes_only=False)
        if follower.found is not None:
            return follower.mismatch(follower.found, recording.last)
        if isinstance(recording.error, _EnoughSeen) or follower.loose or follower.position > follower.last:
            return None
        return follower.mismatch(follower.position, recording.last, recording.error)

    def _follow(self, plan: Plan, stop: int | None, *, shapes_only: bool) -> tuple[Follower, Recording]:
        small = binding.sliced_copy(self.model, plan, self.outlines if shapes_only else self.slices)
        binding.set_attributes(small, plan.attributes)
        follower, train = Follower(self.part, self.keep, stop), self.part.capture.train
        return follower, replay(small, self.part.capture.example, follower.watch, train=train, shapes_only=shapes_only)

    def responsible(self, mismatch: Mismatch) -> ChannelGroup | None:
        """A group without whose cuts the trial gets past a mismatch, by bisection: for a size that was taken from
        another tensor than those around the op (`n, c, h, w = x.shape`, and `c` used further on). None: no group is."""
        groups = self.analysis.groups

        def gets_past(count: int) -> bool:
            whole = self.keep.copy()
            for group in groups[:count]:
                whole[group.start : group.stop] = True
            found = replace(self, keep=whole).run()
            return found is None or found.position > mismatch.position

        low, high = 0, len(groups)
        if not gets_past(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if gets_past(middle) else (middle, high)
        return groups[high - 1]


class Follower:
    """Walks the captured graph in step with a run of the compact model."""

    def __init__(self, part: Graph, keep: Keep, stop: int | None = None) -> None:
        self.part = part
        self.keep = keep
        self._counts: dict[int, int] = {}
        self.nodes = [node for node in part.capture.graph.nodes if is_op(node)]
        self.keys = [op_key(node) for node in self.nodes]
        self.lively = [any(True for _ in self._changes(node)) for node in self.nodes]
        until = len(self.nodes) if stop is None else stop + 1
        self.last = max((index for index, lively in enumerate(self.lively[:until]) if lively), default=-1)
        self.position = 0
        self.found: int | None = None
        self.text = "the trial took another shape"
        self.loose = False
        """Whether a value without channels had another shape than in the captured run: sizes that depend on values."""

    def watch(self, step: Step, outputs: list[Tensor], _inputs: list[Tensor]) -> None:
        """Compare one op's results with what the analysis expects of them."""
        if self.position > self.last:
            raise _EnoughSeen
        if self.align(step) is None:
            return
        expected = self.nodes[self.position]
        if not self.part.capture.reads:  # else a number may as well have been read out of a tensor
            self._compare_factors(expected, step)
        for output, tensor in enumerate(outputs):
            self._compare(expected, output, tensor)
        self.position += 1

    def align(self, step: Step) -> tuple[int, fx.Node] | None:
        """The captured op that this one repeats. Ops without channels may be missing here (a model caches what it
        computed in its first run) or be new here (a loop over what was found)."""
        for position in range(self.position, len(self.nodes)):
            if self.keys[position] == step.key:
                self.position = position
                return position, self.nodes[position]
            if self.lively[position]:
                return None
        return None

    def _compare_factors(self, node: fx.Node, seen: Step) -> None:
        for before, now in zip(_factors(node), _factors(seen), strict=False):
            if before != now:
                self.found, self.text = self.position, f"the number {before:.4g} is computed from it"
                raise _EnoughSeen

    def _compare(self, node: fx.Node, output: int, tensor: Tensor) -> None:
        dims, shape = self._dims(node, output), graph.infos(node)[output]
        if shape is None or len(shape.shape) != tensor.dim():
            self.found = self.position
            raise _EnoughSeen
        for dim, (size, seen) in enumerate(zip(shape.shape, tensor.shape, strict=True)):
            if dim in dims and seen != self._left(dims[dim]):
                self.found = self.position
                raise _EnoughSeen
            if dim not in dims and seen != size:
                if self.lively[self.position] and not self.loose:
                    self.found = self.position
                    raise _EnoughSeen
                self.loose = True

    def mismatch(self, position: int, last: Step | None, error: Exception | None = None) -> Mismatch:
        """Describe what went wrong at an op, or between the last op and this one."""
        node = self.nodes[min(position, len(self.nodes) - 1)]
        sizes = {(old, new): channels for old, new, channels in (*self._changes(node), *self._bounds(node))}
        if not sizes and position:
            sizes = {(old, new): channels for old, new, channels in self._changes(self.nodes[position - 1])}
        text = f"{type(error).__name__}: {str(error).splitlines()[0]}" if error and str(error) else self.text
        listed = tuple((old, new, channels) for (old, new), channels in sizes.items())
        return Mismatch(node, position, last, listed, text[:160])

    def _bounds(self, node: fx.Node) -> Iterator[tuple[int, int, Channels]]:
        """What lies before the start and the end of a slice along channels: sizes that no dimension has."""
        if graph.op_name(node) != "aten.slice" or len(node.args) < 3:
            return
        source, dim, *bounds = node.args
        rank = len(graph.info(source).shape)  # type: ignore[arg-type]  # what is sliced is a node
        channels = self._dims(source, 0).get(dim % rank)  # type: ignore[arg-type, operator]  # likewise, and a number
        for bound in bounds:
            if channels is not None and isinstance(bound, int) and 0 < bound < len(channels):
                yield bound, int(kept_flags(channels[:bound], self.keep).sum()), channels[:bound]

    def _left(self, channels: Channels) -> int:
        if id(channels) not in self._counts:
            self._counts[id(channels)] = int(kept_flags(channels, self.keep).sum())
        return self._counts[id(channels)]

    def _dims(self, node: fx.Node, output: int) -> dict[int, Channels]:
        known = self.part.dims.get(node, [])
        return known[output] if output < len(known) else {}

    def _changes(self, node: fx.Node) -> Iterator[tuple[int, int, Channels]]:
        for source in (node, *node.all_input_nodes):
            for dims in self.part.dims.get(source, []):
                for channels in dims.values():
                    kept = self._left(channels)
                    if kept != len(channels):
                        yield len(channels), kept, channels


def _factors(node: fx.Node | Step) -> list[float]:
    """The numbers that an op calculates with; a scale made of a size is another one in the trial."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]  # only ops of torch.library are followed
    return [
        value
        for argument, value in zip(schema, node.args, strict=False)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "int" not in str(argument.type)
    ]


def op_key(node: fx.Node) -> OpKey:
    """What is the same for an op in every run of a model."""
    return node.target, node.meta.get("module", ""), node.meta.get("source", "")


def is_op(node: fx.Node) -> bool:
    """Whether the node calls an ATen op, and not a part of one's result."""
    return node.op == "call_function" and getattr(node.target, "_schema", None) is not None
