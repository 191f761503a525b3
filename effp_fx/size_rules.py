"""The sizes that modules hold as attributes: which ones explain a trial that went wrong, and where else they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch.utils._pytree as pytree
from torch import fx, nn

from effp_fx import graph
from effp_fx.groups import Channels, Graph
from effp_fx.trial import Mismatch, SizeRule, Trial, is_op, op_key
from effp_fx.watcher import Step

_MOST_TRIED = 6
"""Attributes tried for one mismatch: each costs a part of a forward pass."""


def candidates(model: nn.Module, part: Graph, mismatch: Mismatch) -> Iterator[tuple[SizeRule, ...]]:
    """Attributes near the op that may hold an old size: of its module first, then of the modules around it.

    A list that holds the sizes of all parts of a split is rebound as one: with one entry changed, and the others not,
    its sum fits nothing.
    """
    modules = dict(model.named_modules())
    path = mismatch.last.module if mismatch.last else mismatch.node.meta.get("module", "")
    written = _integers(mismatch.last) if mismatch.last else set()
    pieces = _pieces(part, mismatch.node)
    while True:
        module = modules.get(path)
        if module is not None:
            yield from _lists_of(path, module, pieces)
            yield from ((rule,) for rule in _rules_of(path, module, mismatch, written))
        if not path:
            return
        path = path.rpartition(".")[0]


def _pieces(part: Graph, node: fx.Node) -> list[tuple[int, Channels | None]]:
    """Dense size and channels of each part that an op cuts its input into; none where it returns a single tensor."""
    parts = part.dims.get(node, [])
    along = {dim for dims in parts for dim in dims}
    if len(parts) < 2 or len(along) != 1:
        return []
    dim = along.pop()
    return [(value.shape[dim], dims.get(dim)) for value, dims in zip(graph.infos(node), parts, strict=True) if value]


def _lists_of(
    path: str, module: nn.Module, pieces: list[tuple[int, Channels | None]]
) -> Iterator[tuple[SizeRule, ...]]:
    """The attributes that list the sizes of these parts, in order."""
    for name, value in vars(module).items():
        if pieces and isinstance(value, (tuple, list)) and list(value) == [size for size, _ in pieces]:
            yield tuple(
                SizeRule(path, name, index, size, channels)
                for index, (size, channels) in enumerate(pieces)
                if channels is not None
            )


def _rules_of(path: str, module: nn.Module, mismatch: Mismatch, written: set[int]) -> Iterator[SizeRule]:
    held = list(_sizes_held(module))
    named = [size for size in mismatch.sizes if size[0] in written]
    ranked = named or list(mismatch.sizes)
    for exact in (True, False):
        for old, new, channels in ranked:
            for name, index, value in held:
                fits = value == old if exact else value > 1 and value != old and value * new % old == 0
                if fits and (exact or _always_whole(value, old, channels)):
                    yield SizeRule(path, name, index, value, channels)


def _always_whole(value: int, old: int, channels: Channels) -> bool:
    """Whether a size that stands for `old` indices is a whole number under every plan, not just in the trial: heads
    that go as wholes, the width of heads that all lose the same. Else a number that has nothing to do with them, and
    divides by chance, would be taken for it."""
    counts = np.unique(channels[channels >= 0], return_counts=True)[1]
    return all(value * int(count) % old == 0 for count in (*counts, np.count_nonzero(channels < 0)))


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


def _integers(step: Step) -> set[int]:
    leaves = pytree.tree_leaves((step.args, step.kwargs))
    return {leaf for leaf in leaves if isinstance(leaf, int) and not isinstance(leaf, bool)}


def explain(trial: Trial, mismatch: Mismatch) -> list[SizeRule]:
    """The attribute whose rebinding takes the trial further than `mismatch`, and the same one of like modules."""
    known = {_place(rule) for rule in trial.rules}
    tried = 0
    for found in candidates(trial.model, trial.part, mismatch):
        if any(_place(rule) in known for rule in found) or tried >= _MOST_TRIED:
            continue
        tried += 1
        after = replace(trial, rules=[*trial.rules, *found]).run(stop=mismatch.position)
        if after is None or after.position > mismatch.position:
            alike = _alike(trial.model, trial.part, mismatch, found)
            return [*found, *(one for one in alike if _place(one) not in known)]
    return []


def _place(rule: SizeRule) -> tuple[str, str, int | None]:
    return rule.module, rule.attribute, rule.index


def _alike(model: nn.Module, part: Graph, mismatch: Mismatch, found: tuple[SizeRule, ...]) -> list[SizeRule]:
    """The same rules for other modules of the same class, at the same place among their ops.

    A guess that spares trials; one that is wrong shows in the next trial like any other size.
    """
    modules = dict(model.named_modules())
    nodes = [node for node in part.capture.graph.nodes if is_op(node)]
    first = found[0]
    own = [node for node in nodes if _within(node, first.module)]
    if mismatch.node not in own:
        return []
    place = own.index(mismatch.node)
    rules: list[SizeRule] = []
    for path, module in modules.items():
        if type(module) is not type(modules[first.module]) or path == first.module:
            continue
        theirs = [node for node in nodes if _within(node, path)]
        if place >= len(theirs) or op_key(theirs[place])[::2] != op_key(mismatch.node)[::2]:
            continue
        lists = _lists_of(path, module, _pieces(part, theirs[place])) if len(found) > 1 else ()
        rules += [rule for one in lists for rule in one if rule.attribute == first.attribute]
        rules += _sibling(part, mismatch, first, path, module, theirs[place]) if len(found) == 1 else []
    return rules


def _sibling(
    part: Graph, mismatch: Mismatch, rule: SizeRule, path: str, module: nn.Module, node: fx.Node
) -> list[SizeRule]:
    """The rule for another module, whose op is `node`: the same dimension of it."""
    source = _source_of(part, mismatch.node, rule.channels)
    channels = _channels_at(part, node, source) if source is not None else None
    held = {(name, index): value for name, index, value in _sizes_held(module)}
    value = held.get((rule.attribute, rule.index))
    if channels is None or value is None or value * len(rule.channels) != rule.old * len(channels):
        return []
    return [SizeRule(path, rule.attribute, rule.index, value, channels)]


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
