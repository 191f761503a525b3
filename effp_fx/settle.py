"""Settles the shadows of a model: makes every value rectangular and empties none; keeps them as one array of ids.

Almost every facet varies along one dimension. Those lie end to end in one array, so that a round costs a few array
operations however many ops a model has; the few that vary along several are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx

from effp_fx import graph
from effp_fx.channel_ids import ChannelIds, Ids, Reason
from effp_fx.ops.context import Call, Context
from effp_fx.ops.shadow import (
    Shadow,
    absolute,
    compress,
    crop,
    flat,
    identity,
    is_empty,
    map_ids,
    varying,
)

Key = tuple[object, ...]


@dataclass
class Facets:
    """Every distinct facet of a model."""

    lines: dict[Key, tuple[int, int, int]] = field(default_factory=dict)
    """Facets along one dimension: that dimension, and where in `ids` they start and stop."""
    nodes: list[fx.Node] = field(default_factory=list)
    """For each line the first op that has it."""
    ids: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    wide: dict[Key, tuple[fx.Node, Tensor]] = field(default_factory=dict)
    """Facets along several dimensions."""


def collect(shadows: Iterable[dict[fx.Node, list[Shadow]]]) -> Facets:
    """Sort the facets of these graphs."""
    found = Facets()
    pieces: list[Ids] = []
    position = 0
    for graph_shadows in shadows:
        for node, outputs in graph_shadows.items():
            for facet in (facet for shadow in outputs for facet in shadow.facets):
                key = identity(facet)
                if key in found.lines or key in found.wide:
                    continue
                along = varying(facet)
                if len(along) != 1:
                    found.wide[key] = (node, facet)
                    continue
                values = flat(facet)
                found.lines[key] = (along[0], position, position + len(values))
                found.nodes.append(node)
                pieces.append(values)
                position += len(values)
    if pieces:
        found.ids = np.concatenate(pieces)
    return found


def settle(context: Context, facets: Facets) -> None:
    """Unite along one dimension where channels vary along two, freeze what empties a tensor, until all is settled."""
    starts = np.array([start for _, start, _ in facets.lines.values()], dtype=np.int64)
    pending = dict(facets.wide)
    while True:
        roots, frozen = context.ids.roots().copy(), context.ids.frozen_mask().copy()
        table = np.where(frozen, 0, roots)
        if len(starts):
            _freeze_whole_lines(context, facets, starts, table)
        mapped = torch.from_numpy(table)
        done = [key for key, (node, facet) in pending.items() if _is_done(context, node, facet, mapped)]
        for key in done:
            del pending[key]
        if not np.array_equal(roots, context.ids.roots()) or not np.array_equal(frozen, context.ids.frozen_mask()):
            continue
        # What is balanced stays so whatever is united: this waits until nothing else says which channels go together.
        if not any([_balance(context.ids, *balance) for balance in context.balances]):
            return


def _balance(ids: ChannelIds, parts: Ids, reason: Reason) -> bool:
    """Unite channels so that as many of each part go with every one; whether anything had to be done.

    A channel that lies in every part alike needs no partner. The others are collected, one after another from the part
    that is most behind, until the count is even.

    Args:
        ids: all ids.
        parts: (parts, size), the id of each index of each part, 0 for none.
        reason: why a channel stays for which there is no partner.
    """
    waiting = _uneven(ids, parts)
    found = bool(waiting)
    left, right = list[int](), list[int]()
    while waiting:
        total, members = [0] * len(parts), list[int]()
        while not members or min(total) < max(total):
            behind = total.index(min(total))
            fitting = [uneven for uneven in waiting if uneven[behind] > 0]
            if members and not fitting:
                ids.freeze(np.array(members), reason)
                break
            best = min(fitting or waiting, key=lambda uneven: _spread(total, uneven))
            members.append(waiting[best].pop(0))
            total = [one + two for one, two in zip(total, best, strict=True)]
            if not waiting[best]:
                del waiting[best]
        left += members[:1] * len(members)
        right += members
    ids.unite(np.array(left, dtype=np.int64), np.array(right, dtype=np.int64))
    return found


def _spread(one: Sequence[int], two: Sequence[int]) -> int:
    sums = [first + second for first, second in zip(one, two, strict=True)]
    return max(sums) - min(sums)


def _uneven(ids: ChannelIds, parts: Ids) -> dict[tuple[int, ...], list[int]]:
    """The channels of which some parts have more than others: how many more -> their roots, in order of place."""
    roots = np.where(ids.frozen_mask(), 0, ids.roots())[parts]
    channels, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
    counts = np.zeros((len(channels), len(parts)), dtype=np.int64)
    np.add.at(counts, (inverse.reshape(-1), np.repeat(np.arange(len(parts)), parts.shape[1])), 1)
    counts -= counts.min(axis=1, keepdims=True)
    found: dict[tuple[int, ...], list[int]] = {}
    rows, numbers = counts.tolist(), channels.tolist()
    for index in np.argsort(first, kind="stable").tolist():
        if numbers[index] > 0 and any(rows[index]):
            found.setdefault(tuple(rows[index]), []).append(numbers[index])
    return found


def _freeze_whole_lines(context: Context, facets: Facets, starts: Ids, table: Ids) -> None:
    """A line that is all one channel: without it nothing of the tensor would be left."""
    channels = table[facets.ids]
    low, high = np.minimum.reduceat(channels, starts), np.maximum.reduceat(channels, starts)
    for index in np.flatnonzero((low == high) & (low > 0)).tolist():
        context.ids.freeze(low[index : index + 1], _empties(facets.nodes[index]))


def _empties(node: fx.Node) -> Reason:
    text = "a whole tensor would be left empty"
    return Reason(text, graph.op_name(node), node.meta.get("module", ""), node.meta.get("source", ""))


def _is_done(context: Context, node: fx.Node, facet: Tensor, table: Tensor) -> bool:
    """Whether nothing more can come of this facet; unites or freezes where it is not rectangular or leaves nothing."""
    small = absolute(map_ids(facet, table))
    if is_empty(small):
        return True
    small = compress(small)
    along = varying(small)
    if not along:
        context.ids.freeze(flat(small), _empties(node))
        return True
    if len(along) == 1:
        return False
    best = max(along, key=lambda dim: (_classes(small, dim), -dim))
    context.level(Call(node, {}), crop(small), best)
    return False


def _classes(small: Tensor, dim: int) -> int:
    """How many channels are left if everything within one index of `dim` is united."""
    rows = crop(small).movedim(dim, 0).reshape(small.shape[dim], -1).numpy()
    whole = (rows > 0).all(1)
    if not whole.any():
        return 0
    values, compact = np.unique(rows[whole], return_inverse=True)
    ids = ChannelIds()
    first = ids.new("values", 0, len(values)).start
    table: Ids = compact.reshape(rows[whole].shape) + first
    ids.unite(np.repeat(table[:, 0], rows.shape[1]), table.reshape(-1))
    roots = ids.roots()
    partial = np.intersect1d(rows[~whole], values)
    lost = np.unique(roots[np.searchsorted(values, partial) + first])
    return len(np.unique(roots[first:])) - len(lost)
