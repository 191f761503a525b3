"""Finds sizes that are written in Python: lowers a trial copy, runs it, compares every op with what the analysis expects.

The graph cannot tell whether `split((64, 64, 128))` was computed or typed in. Where the trial differs from what was
expected, an integer attribute of a module near by that holds the old size is rebound, and the trial runs again; where no
attribute explains it, the channels concerned are frozen, with the place as the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from effp_fx import binding, graph
from effp_fx.capture import Attempt, replay
from effp_fx.channel_ids import Reason
from effp_fx.groups import Analysis, Channels, Graph, Keep, kept_flags
from effp_fx.inputs import Example
from effp_fx.plan import from_keep


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
        return self.old * int(kept_flags(self.channels, keep).sum()) // len(self.channels)


@dataclass(frozen=True)
class Mismatch:
    """The first op at which the trial was not what the analysis expects."""

    node: fx.Node
    position: int
    attempt: Attempt | None
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
        source = self.attempt.source if self.attempt and self.attempt.source else self.node.meta.get("source", "")
        return Reason(f"a size is written in Python: {self.text}", graph.op_name(self.node), self.node.meta.get("module", ""), source)


_MOST_TRIED = 6
"""Attributes tried for one mismatch: each costs a part of a forward pass."""


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


def attributes_for(model: nn.Module, analysis: Analysis, rules: list[SizeRule], keep: Keep) -> binding.Attributes:
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


def run(
    model: nn.Module, analysis: Analysis, part: Graph, example: Example, rules: list[SizeRule], keep: Keep, stop: int | None = None
) -> Mismatch | None:
    """Lower a trial copy and run it against the captured graph. None: every op (up to `stop`) was as expected."""
    plan = from_keep(analysis, keep, attributes_for(model, analysis, rules, keep), summary={})
    small = binding.sliced_copy(model, plan)
    binding.set_attributes(small, plan.attributes)
    follower = Follower(part, keep, stop)
    recording = replay(small, example, follower.watch, train=part.capture.train)
    if follower.found is not None:
        return follower.mismatch(follower.found, recording.attempt)
    if isinstance(recording.error, _EnoughSeen) or follower.loose or follower.position > follower.last:
        return None
    return follower.mismatch(follower.position, recording.attempt, recording.error)


class Follower:
    """Walks the captured graph in step with a run of the compact model."""

    def __init__(self, part: Graph, keep: Keep, stop: int | None = None) -> None:
        self.part = part
        self.keep = keep
        self._counts: dict[int, int] = {}
        self.nodes = [node for node in part.capture.graph_module.graph.nodes if _is_op(node)]
        self.lively = [any(True for _ in self._changes(node)) for node in self.nodes]
        until = len(self.nodes) if stop is None else stop + 1
        self.last = max((index for index, lively in enumerate(self.lively[:until]) if lively), default=-1)
        self.position = 0
        self.found: int | None = None
        self.loose = False
        """Whether a value without channels had another shape than in the captured run: sizes that depend on values."""

    def watch(self, node: fx.Node, outputs: list[Tensor], _inputs: list[Tensor]) -> None:
        """Compare one op's results with what the analysis expects of them."""
        if self.position > self.last:
            raise _EnoughSeen
        if self.align(node) is None:
            return
        expected = self.nodes[self.position]
        for output, tensor in enumerate(outputs):
            self._compare(expected, output, tensor)
        self.position += 1

    def align(self, node: fx.Node) -> tuple[int, fx.Node] | None:
        """The captured op that this one repeats. Ops without channels may be missing here (a model caches what it
        computed in its first run) or be new here (a loop over what was found)."""
        for position in range(self.position, len(self.nodes)):
            if _key(self.nodes[position]) == _key(node):
                self.position = position
                return position, self.nodes[position]
            if self.lively[position]:
                return None
        return None

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

    def mismatch(self, position: int, attempt: Attempt | None, error: Exception | None = None) -> Mismatch:
        """Describe what went wrong at an op, or between the last op and this one."""
        node = self.nodes[min(position, len(self.nodes) - 1)]
        sizes = {(old, new): channels for old, new, channels in self._changes(node)}
        if not sizes and position:
            sizes = {(old, new): channels for old, new, channels in self._changes(self.nodes[position - 1])}
        text = f"{type(error).__name__}: {str(error).splitlines()[0]}" if error and str(error) else "the trial took another shape"
        listed = tuple((old, new, channels) for (old, new), channels in sizes.items())
        return Mismatch(node, position, attempt, listed, text[:160])

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


def _key(node: fx.Node) -> tuple[Any, str, str]:
    return node.target, node.meta.get("module", ""), node.meta.get("source", "")


def _is_op(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "_schema", None) is not None


def candidates(model: nn.Module, mismatch: Mismatch) -> Iterator[SizeRule]:
    """Attributes near the op that may hold an old size: of its module first, then of the modules around it."""
    modules = dict(model.named_modules())
    path = mismatch.attempt.module if mismatch.attempt else mismatch.node.meta.get("module", "")
    written = _integers(mismatch.attempt) if mismatch.attempt else set()
    while True:
        module = modules.get(path)
        if module is not None:
            yield from _rules_of(path, module, mismatch, written)
        if not path:
            return
        path = path.rpartition(".")[0]


def _rules_of(path: str, module: nn.Module, mismatch: Mismatch, written: set[int]) -> Iterator[SizeRule]:
    held = list(_sizes_held(module))
    named = [size for size in mismatch.sizes if size[0] in written]
    ranked = named or list(mismatch.sizes)
    for exact in (True, False):
        for old, new, channels in ranked:
            for name, index, value in held:
                fits = value == old if exact else value > 1 and value != old and old % value == 0 and value * new % old == 0
                if fits:
                    yield SizeRule(path, name, index, value, channels)


def _sizes_held(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield name, None, value
        elif isinstance(value, (tuple, list)) and len(value) <= 16:
            for index, item in enumerate(value):
                if isinstance(item, int) and not isinstance(item, bool):
                    yield name, index, item


def _integers(attempt: Attempt) -> set[int]:
    leaves = pytree.tree_leaves((attempt.args, attempt.kwargs))
    return {leaf for leaf in leaves if isinstance(leaf, int) and not isinstance(leaf, bool)}


def explain(
    model: nn.Module, analysis: Analysis, part: Graph, example: Example, rules: list[SizeRule], keep: Keep, mismatch: Mismatch
) -> list[SizeRule]:
    """The attribute whose rebinding takes the trial further than `mismatch`, and the same one of like modules."""
    known = {(rule.module, rule.attribute, rule.index) for rule in rules}
    tried = 0
    for rule in candidates(model, mismatch):
        if (rule.module, rule.attribute, rule.index) in known or tried >= _MOST_TRIED:
            continue
        tried += 1
        after = run(model, analysis, part, example, [*rules, rule], keep, stop=mismatch.position)
        if after is None or after.position > mismatch.position:
            alike = _siblings(model, part, mismatch, rule)
            return [rule, *(one for one in alike if (one.module, one.attribute, one.index) not in known)]
    return []


def _siblings(model: nn.Module, part: Graph, mismatch: Mismatch, rule: SizeRule) -> Iterator[SizeRule]:
    """The rule for other modules of the same class: the same dimension of the op at the same place among their ops.

    A guess that spares trials; one that is wrong shows in the next trial like any other size.
    """
    modules = dict(model.named_modules())
    nodes = [node for node in part.capture.graph_module.graph.nodes if _is_op(node)]
    own = [node for node in nodes if _within(node, rule.module)]
    if mismatch.node not in own:
        return
    place = own.index(mismatch.node)
    source = _source_of(part, mismatch.node, rule.channels)
    for path, module in modules.items():
        if type(module) is not type(modules[rule.module]) or path == rule.module or source is None:
            continue
        theirs = [node for node in nodes if _within(node, path)]
        if place >= len(theirs) or _key(theirs[place])[::2] != _key(mismatch.node)[::2]:
            continue
        channels = _channels_at(part, theirs[place], source)
        held = {(name, index): value for name, index, value in _sizes_held(module)}
        value = held.get((rule.attribute, rule.index))
        if channels is not None and value is not None and value * len(rule.channels) == rule.old * len(channels):
            yield SizeRule(path, rule.attribute, rule.index, value, channels)


def _within(node: fx.Node, path: str) -> bool:
    name = str(node.meta.get("module", ""))
    return name == path or name.startswith(f"{path}.")


Source = tuple[int, int, int]
"""(0 for the op itself, n for its n-th input; output; dimension)."""


def _source_of(part: Graph, node: fx.Node, channels: Channels) -> Source | None:
    for index, item in enumerate((node, *node.all_input_nodes)):
        for output, dims in enumerate(part.dims.get(item, [])):
            for dim, found in dims.items():
                if found is channels:
                    return index, output, dim
    return None


def _channels_at(part: Graph, node: fx.Node, source: Source) -> Channels | None:
    items = (node, *node.all_input_nodes)
    if source[0] >= len(items):
        return None
    outputs = part.dims.get(items[source[0]], [])
    return outputs[source[1]].get(source[2]) if source[1] < len(outputs) else None
