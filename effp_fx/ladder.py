"""Each channel group as a ladder of kept counts, and a cost as an exact function of the rung that each group stands on.

Within a group the better channel always goes last, so a plan is one whole number per group: its rung. Rung 0 keeps
the least a group may keep, and every rung above adds one block of its best channels. A search then handles a few
thousand whole numbers in place of a hundred thousand switches, with costs that are still exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from effp_fx.cost import Cost, Floats, Ints
from effp_fx.groups import Analysis, ChannelGroup

# Logarithms of values lie within +-WIDEST, of what a group is worth within +-HEAVIEST, of prices within one and a half
# times WIDEST; one group's keys are therefore STRIDE apart from the next's.
WIDEST = 80.0
HEAVIEST = 40.0
STRIDE = 400.0


@dataclass(frozen=True)
class Ladder:
    """G groups with `rungs[g]` steps each; a state is an integer array `at` (G), 0 <= at <= rungs.

    `order` (K): channels, group after group, best first; `rung_of` (K, by channel): the lowest rung that keeps it,
    rungs + 1 for never. `least`, `block` (G): at rung r the group keeps least + r * block channels. `full` (G): what
    it has when dense. `keys`: for all rungs of all groups the value as a sorted search key; group g's begin at
    `offset[g]`.
    """

    order: Ints
    rung_of: Ints
    group_of: Ints
    full: Ints
    least: Ints
    block: Ints
    rungs: Ints
    keys: Floats
    offset: Ints

    def keep(self, at: Ints) -> NDArray[np.bool_]:
        """The channels kept (K) at this state (G)."""
        kept: NDArray[np.bool_] = self.rung_of <= at[self.group_of]
        return kept

    def at_share(self, share: float) -> Ints:
        """The lowest state at which every group keeps at least this share of its channels, as far as its rungs go."""
        wanted = np.ceil((np.ceil(share * self.full - 1e-9) - self.least) / self.block).astype(np.int64)
        state: Ints = np.clip(wanted, 0, self.rungs)
        return state

    def at_price(self, prices: Floats) -> Ints:
        """The state at which every group keeps exactly the rungs that are worth at least its price (G, logarithm)."""
        groups = np.arange(len(self.rungs))
        query = groups * STRIDE - np.clip(prices, -1.5 * WIDEST, 1.5 * WIDEST)
        state: Ints = np.clip(np.searchsorted(self.keys, query, side="right") - self.offset, 0, self.rungs)
        return state

    def weighing(self, worth: Floats) -> Ladder:
        """The same ladder, the values of each group times what the group is worth (G; 0 is as good as nothing)."""
        logarithms = np.clip(np.log(np.maximum(worth, np.exp(-HEAVIEST))), -HEAVIEST, HEAVIEST)
        return replace(self, keys=self.keys - np.repeat(logarithms, self.rungs))

    def next_value(self, at: Ints) -> Floats:
        """Logarithm of the value of each group's next rung (G); minus infinity for a group that stands on its last."""
        if not len(self.keys):
            return np.full(len(at), -np.inf)
        key = self.keys[np.minimum(self.offset + at, len(self.keys) - 1)]
        return np.where(at < self.rungs, np.arange(len(at)) * STRIDE - key, -np.inf)


def build_ladder(analysis: Analysis, scores: Floats, *, round_to: int = 1) -> Ladder:
    """The ladders of all groups, from a finite score per channel (K).

    What a rung is worth (our choice): let a group that keeps the share k of its summed scores count 1/k; a rung is
    worth what it takes off that. For the first channels to go this is the score over the group's sum; the thinner a
    group, the more each of its channels is worth, the last one beyond price. Costs are products of counts, and a plain
    sum of scores under a bound on a product is largest in the corners, with one group full and its neighbour almost
    empty, whatever the scores; this has its one optimum inside. All groups count alike; see `Ladder.weighing`.
    """
    spans = [(group.start, group.stop) for group in analysis.groups]
    full = np.array([stop - start for start, stop in spans], dtype=np.int64)
    steps = [step_of(group, round_to) for group in analysis.groups]
    least, block = np.array(steps, dtype=np.int64).reshape(-1, 2).T
    rungs = (full - least) // block
    channels = np.concatenate([np.arange(*span) for span in spans]) if spans else np.zeros(0, np.int64)
    groups = np.repeat(np.arange(len(spans)), full)
    group_of = np.empty_like(groups)
    group_of[channels] = groups
    order = channels[np.lexsort((channels, -scores[channels], groups))]
    place = np.arange(len(order)) - np.repeat(np.cumsum(full) - full, full)
    above = np.maximum(place - least[groups], -1) // block[groups]
    rung = np.minimum(above + 1, rungs[groups] + 1)
    rung_of = np.empty_like(rung)
    rung_of[order] = rung
    offset = np.concatenate([[0], np.cumsum(rungs)])[:-1]
    values = _values(scores[order], groups, rung, rungs, full)
    above_least = np.repeat(np.arange(len(spans)), rungs)
    keys = np.maximum.accumulate(above_least * STRIDE - values) if len(values) else values
    return Ladder(order, rung_of, group_of, full, least, block, rungs, keys, offset)


def step_of(group: ChannelGroup, round_to: int) -> tuple[int, int]:
    """The least number of channels this group keeps, and in what blocks further ones come.

    Rounding is of rows in the tensors: a channel of 64 rows (a head) is a multiple of 8 by itself. Where the group is
    too small for `round_to`, its largest divisor that fits takes its place. A least count above the last whole block
    keeps the group whole.
    """
    size = group.stop - group.start
    rows = {part.per_channel for part in group.slices}
    block = group.multiple_of
    for divisor in sorted((d for d in range(1, round_to + 1) if round_to % d == 0), reverse=True):
        tried = lcm(group.multiple_of, *(divisor // gcd(divisor, count) for count in rows or {1}))
        if tried <= size:
            block = tried
            break
    least = -(-max(group.min_kept, 1) // block) * block
    return (least, block) if least <= size else (size, 1)


def _values(scores: Floats, groups: Ints, rung: Ints, rungs: Ints, full: Ints) -> Floats:
    """Logarithm of what each rung above the least is worth, group after group, falling within each."""
    count = len(full)
    lowest = np.zeros(count)
    np.minimum.at(lowest, groups, scores)
    scores = scores - lowest[groups]
    total = np.bincount(groups, scores, count)
    # Nothing but zeros says nothing (a norm that starts at zero): all its channels are alike.
    scores = np.where(total[groups] > 0, scores / np.where(total > 0, total, 1.0)[groups], 1.0 / full[groups])
    levels = rungs + 1
    first = np.cumsum(levels) - levels
    reached = rung <= rungs[groups]
    sums = np.bincount(first[groups[reached]] + rung[reached], scores[reached], int(levels.sum()))
    running = np.cumsum(sums)
    above = np.ones(len(sums), dtype=bool)
    above[first] = False
    below = (running - np.repeat(running[first] - sums[first], levels) - sums)[above]
    worth = sums[above] / np.maximum(below * (below + sums[above]), 1e-300)
    logarithms: Floats = np.clip(np.log(np.maximum(worth, 1e-300)), -WIDEST, WIDEST)
    return logarithms


class Staircase:
    """A cost as a function of the state of a ladder: exact, and some microseconds a call.

    For each pair of a factor and a group with channels in it, `table` holds how many of the factor's entries the
    group supplies at each of its rungs, so that counts are look-ups. The same pairs, term by term, give the exact
    cost of each group's next rung.
    """

    def __init__(self, cost: Cost, ladder: Ladder) -> None:
        groups = len(ladder.rungs)
        self._cost = cost
        self._rungs = ladder.rungs
        self._base = cost.base
        group = ladder.group_of[cost.entry_channel]
        rung = ladder.rung_of[cost.entry_channel]
        used = rung <= ladder.rungs[group]
        pairs, pair = np.unique(cost.entry_factor[used] * groups + group[used], return_inverse=True)
        self._factor: Ints = pairs // groups if groups else pairs
        self._group: Ints = pairs % groups if groups else pairs
        levels = ladder.rungs[self._group] + 1
        self._start: Ints = np.cumsum(levels) - levels
        sums = np.bincount(self._start[pair] + rung[used], cost.entry_weight[used], int(levels.sum()))
        running = np.cumsum(sums)
        self._table: Floats = running - np.repeat(running[self._start] - sums[self._start], levels)
        self._term, self._riser, self._step = self._meetings(groups)

    def _meetings(self, groups: int) -> tuple[Ints, Ints, Ints]:
        """Every (term, group) that meet: the term, the group, and for each slot its pair (past the last: none)."""
        slots = self._cost.slots
        begin = np.searchsorted(self._factor, np.arange(len(self._base)))
        length = np.bincount(self._factor, minlength=len(self._base))
        terms, columns, pairs = [], [], []
        for column in range(slots.shape[1]):
            here = length[slots[:, column]]
            within = np.arange(here.sum()) - np.repeat(np.cumsum(here) - here, here)
            terms.append(np.repeat(np.arange(len(slots)), here))
            pairs.append(np.repeat(begin[slots[:, column]], here) + within)
            columns.append(np.full(len(within), column))
        if not terms:
            nothing = np.zeros(0, np.int64)
            return nothing, nothing, nothing.reshape(0, 0)
        term, pair = np.concatenate(terms), np.concatenate(pairs)
        keys, place = np.unique(term * groups + self._group[pair], return_inverse=True)
        step = np.full((len(keys), slots.shape[1]), len(self._factor))
        step[place, np.concatenate(columns)] = pair
        return keys // max(groups, 1), keys % max(groups, 1), step

    def _counts(self, at: Ints) -> Floats:
        supplied = self._table[self._start + at[self._group]]
        return self._base + np.bincount(self._factor, supplied, len(self._base))

    def __call__(self, at: Ints) -> float:
        """The cost at this state (G)."""
        return float(self._cost.term_costs(self._counts(at)).sum())

    def price(self, at: Ints) -> Floats:
        """What the topmost kept rung of each group costs at the present slopes (G); the first, where none is kept."""
        slopes = self._cost.slopes(self._counts(at))
        top = self._start + np.minimum(np.maximum(at, 1), self._rungs)[self._group]
        step = self._table[top] - self._table[np.maximum(top - 1, self._start)]
        return np.bincount(self._group, slopes[self._factor] * step, len(at)).astype(np.float64)

    def change(self, at: Ints, by: int) -> Floats:
        """What the cost changes by if one group alone goes `by` rungs up, exactly (G); infinity where it cannot."""
        counts = self._counts(at)
        to = at + by
        possible = (to >= 0) & (to <= self._rungs)
        moved = np.where(possible, to, at)[self._group]
        steps = np.append(self._table[self._start + moved] - self._table[self._start + at[self._group]], 0.0)
        before = counts[self._cost.slots[self._term]]
        after = before + steps[self._step]
        added = self._cost.constants[self._term] * (after.prod(axis=1) - before.prod(axis=1))
        return np.where(possible, np.bincount(self._riser, added, len(at)), np.inf)
