"""Finds the op at which a compact model leaves its masked twin, and freezes the channels there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx, nn

from effp_fx import binding, graph, trial
from effp_fx.capture import replay
from effp_fx.channel_ids import Ids, Reason
from effp_fx.groups import Graph, Keep, kept_flags
from effp_fx.inputs import to_dtype
from effp_fx.module_copy import copied
from effp_fx.plan import from_keep
from effp_fx.tracing import Tracing
from effp_fx.watcher import Step

_DIFFERENT = 1e-7
"""Relative difference of one value, in float64, beyond which two runs have parted."""


class _Parted(Exception):
    """Ends the second run."""


class _Digests:
    """The size of every value in a run, as the sum of its absolute elements over what is kept."""

    def __init__(self, part: Graph, keep: Keep, *, slice_away: bool) -> None:
        self.follower = trial.Follower(part, keep)
        self.part, self.keep, self.slice_away = part, keep, slice_away
        self.values: dict[int, list[float]] = {}
        self.reference: dict[int, list[float]] | None = None
        self.parted: fx.Node | None = None

    def watch(self, step: Step, outputs: list[Tensor], _inputs: list[Tensor]) -> None:
        found = self.follower.align(step)
        if found is None:
            return
        position, expected = found
        self.follower.position += 1
        sums = [float(self._kept(expected, index, value).double().abs().sum()) for index, value in enumerate(outputs)]
        self.values[position] = sums
        before = None if self.reference is None else self.reference.get(position)
        if before is not None and not np.allclose(before, sums, rtol=_DIFFERENT, atol=1e-30, equal_nan=True):
            self.parted = expected
            raise _Parted

    def _kept(self, node: fx.Node, output: int, value: Tensor) -> Tensor:
        dims = self.part.dims.get(node, [])
        if not self.slice_away or output >= len(dims):
            return value
        for dim, channels in dims[output].items():
            if value.shape[dim] == len(channels):
                value = value.index_select(
                    dim, torch.from_numpy(np.flatnonzero(kept_flags(channels, self.keep))).to(value.device)
                )
        return value


def refit(work: Tracing, keep: Keep) -> bool:
    """Freeze the channels around the first op whose sizes do not fit this plan. False: all fit.

    A size that could be rebound in the trial, whose cuts are even, may not go with every plan: heads that are not cut
    as wholes, for one.
    """
    for part in work.analysis.graphs:
        mismatch = trial.Trial(work.model, work.analysis, part, work.rules, keep).run()
        if mismatch is not None and len(mismatch.channels):
            work.freeze(mismatch.channels, mismatch.reason())
            work.settle(lambda _: None)
            return True
    return False


def learn(work: Tracing, masked: nn.Module, keep: Keep) -> bool:
    """Freeze the channels around the first op at which masked and compact model part. False: none was found."""
    if refit(work, keep):
        return True
    for part in work.analysis.graphs:
        node = _where_parted(work, part, masked, keep)
        if node is None:
            continue
        channels = _around(part, node)
        if not len(channels):
            continue
        text = "its value changes when channels go, for a reason that the graph does not show"
        work.freeze(
            channels, Reason(text, graph.op_name(node), node.meta.get("module", ""), node.meta.get("source", ""))
        )
        work.settle(lambda _: None)
        return True
    return False


def _where_parted(work: Tracing, part: Graph, masked: nn.Module, keep: Keep) -> fx.Node | None:
    example = to_dtype(part.capture.example, torch.float64)
    plan = from_keep(work.analysis, keep, work.attributes(keep), summary={})
    small = binding.sliced_copy(work.model, plan)
    binding.set_attributes(small, plan.attributes)
    first = _Digests(part, keep, slice_away=True)
    replay(copied(masked).double(), example, first.watch, train=part.capture.train)
    second = _Digests(part, keep, slice_away=False)
    second.reference = first.values
    replay(small.double(), example, second.watch, train=part.capture.train)
    return second.parted


def _around(part: Graph, node: fx.Node) -> Ids:
    """The channels at an op; where it has none, those of the nearest ops before it: what they were summed up from.

    Where there are none before it either (a tensor that Python made of a size), those at the op that uses it.
    """
    waiting, seen = [node], {node}
    while waiting:
        item = waiting.pop(0)
        channels = _before(part, item)
        if len(channels):
            return channels
        waiting += [user for user in item.users if user not in seen]
        seen |= {*item.users}
    return np.zeros(0, dtype=np.int64)


def _before(part: Graph, node: fx.Node) -> Ids:
    frontier, seen = [node, *node.all_input_nodes], {node}
    while frontier:
        found = [
            channels[channels >= 0]
            for item in frontier
            for dims in part.dims.get(item, [])
            for channels in dims.values()
        ]
        if any(len(channels) for channels in found):
            return np.unique(np.concatenate(found))
        seen |= {*frontier}
        frontier = [source for item in frontier for source in item.all_input_nodes if source not in seen]
    return np.zeros(0, dtype=np.int64)
