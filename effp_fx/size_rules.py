"""The sizes that modules hold as attributes: which ones explain a trial that went wrong, and where else they stand."""

from __future__ import annotations

from collections.abc import Iterator

import torch.utils._pytree as pytree
from torch import fx, nn

from effp_fx.groups import Analysis, Channels, Graph, Keep
from effp_fx.inputs import Example
from effp_fx.trial import Mismatch, SizeRule, is_op, op_key, run
from effp_fx.watcher import Step

_MOST_TRIED = 6
"""Attributes tried for one mismatch: each costs a part of a forward pass."""


def candidates(model: nn.Module, mismatch: Mismatch) -> Iterator[SizeRule]:
    """Attributes near the op that may hold an old size: of its module first, then of the modules around it."""
    modules = dict(model.named_modules())
    path = mismatch.last.module if mismatch.last else mismatch.node.meta.get("module", "")
    written = _integers(mismatch.last) if mismatch.last else set()
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
                fits = (
                    value == old
                    if exact
                    else value > 1 and value != old and old % value == 0 and value * new % old == 0
                )
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


def _integers(step: Step) -> set[int]:
    leaves = pytree.tree_leaves((step.args, step.kwargs))
    return {leaf for leaf in leaves if isinstance(leaf, int) and not isinstance(leaf, bool)}


def explain(
    model: nn.Module,
    analysis: Analysis,
    part: Graph,
    example: Example,
    rules: list[SizeRule],
    keep: Keep,
    mismatch: Mismatch,
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
    nodes = [node for node in part.capture.graph_module.graph.nodes if is_op(node)]
    own = [node for node in nodes if _within(node, rule.module)]
    if mismatch.node not in own:
        return
    place = own.index(mismatch.node)
    source = _source_of(part, mismatch.node, rule.channels)
    for path, module in modules.items():
        if type(module) is not type(modules[rule.module]) or path == rule.module or source is None:
            continue
        theirs = [node for node in nodes if _within(node, path)]
        if place >= len(theirs) or op_key(theirs[place])[::2] != op_key(mismatch.node)[::2]:
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
