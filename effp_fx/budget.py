"""Which channels to keep so that targets are met from above: never over, and under by less than one channel costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from effp_fx.cost import Cost, Floats, Ints
from effp_fx.errors import EffpError, TargetError
from effp_fx.groups import Analysis
from effp_fx.ladder import Ladder, Staircase, build_ladder
from effp_fx.obstacles import unreachable

# No group falls below this part of the width that one uniform width would leave it; the smaller ones are for two
# targets that cannot both be met closely under the first, which is left out where it is known what groups are worth.
# Ours to choose; see `search`.
SMALLEST_SHARES = (0.5, 0.25, 0.125)
# A target that is missed by more than this part of the dense cost, because the other one stands in the way, is a
# contradiction.
CONTRADICTION = 0.1
# How far two prices are tilted against each other at most, and how finely in each round.
STEEPEST = 8.0
HALVINGS = (8, 8, 14)
# Each trade brings two targets nearer by about a channel; some ten are the rule.
MOST_TRADES = 100


def resolve_target(value: float, dense: float, name: str) -> float:
    """The absolute cost that `value` asks for: up to 1 the part of the dense cost that is kept, above 1 a count.

    Raises TargetError for what is no number, not above 0, not finite, or above the dense cost.
    """
    say = partial(TargetError, where=name, expected=f"a part in (0, 1], or a count up to the dense {dense:,.0f}")
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise say("a target must be a number", seen=repr(value))
    if not math.isfinite(value) or value <= 0:
        raise say("a target must be a finite number above 0", seen=repr(value))
    absolute = float(value) * dense if value <= 1 else float(value)
    if absolute > dense:
        raise say(
            "a target must not be above the dense cost", seen=f"{absolute:,.0f}", mend="ask for a part: 0.5 keeps half"
        )
    return absolute


def search(
    analysis: Analysis,
    scores: Floats,
    costs: Mapping[str, Cost],
    targets: Mapping[str, float],
    *,
    round_to: int = 1,
    closely: bool = True,
    rank_by: Cost | None = None,
    worth: Floats | None = None,
) -> NDArray[np.bool_]:
    """The channels to keep (K), the most valuable for what they cost, under all targets.

    `scores` (K): higher is better; only their ratios within a group count. `targets`: absolute, by name of a cost. What
    comes back is never over a target, and no block of channels can be added without going over one. Two targets are
    both used up, by taking more of the channels that weigh on the one and fewer of those that weigh on the other, as
    far as groups have different ratios of the two costs; what that cannot reach stays unused, up to a tenth of the
    dense cost, beyond which the targets are said to contradict each other.

    The rule (ours): keep a channel where its worth (`ladder.build_ladder`) is at least a common price times the cost it
    saves, costs being taken at the network that is left, not at the dense one. Group Fisher (Liu et al. 2021) divides
    by the saved cost likewise, but at the time of removal, one channel after the other. Prices and network are made to
    agree by iteration; what is left of the budget is filled up by exact costs. Whatever the scores, no group falls
    below half of the share that a uniform width would leave it, but for minima and rounding that force it, or where two
    targets need it: then a quarter, or an eighth. Where `worth` is given, a quarter comes first.

    `worth` (G): what each group as a whole is worth beside the others, 0 or more; only ratios count. None: what it
    costs in the dense network (decision 12), so that the uniform width is the optimum where scores say nothing. A group
    whose worth is 0, which is not known then, counts for its cost as well, at the rate of the others.

    `rank_by`: another cost whose saving importance is divided by, such as bytes or seconds, so that what costs more of
    it than of the targets' goes first; None: those of the targets.

    Raises UnreachableTargetError, and TargetError where two targets contradict each other (not if `closely` is False:
    then one of them may stay unused by any part).
    """
    if scores.shape != (analysis.channels,) or not np.isfinite(scores).all():
        raise EffpError("scores must be one finite number per channel", seen=f"shape {scores.shape}, or not all finite")
    ladder = build_ladder(analysis, scores, round_to=round_to)
    stairs = {name: Staircase(costs[name], ladder) for name in targets}
    for name, stair in stairs.items():
        if stair(np.zeros_like(ladder.rungs)) > targets[name]:
            raise unreachable(analysis, costs[name], targets[name], name, ladder)
    open_ = [name for name, stair in stairs.items() if stair(ladder.rungs) > targets[name]]
    if not open_:
        return ladder.keep(ladder.rungs)
    limits = np.array([targets[name] for name in open_])
    rank = None if rank_by is None or not rank_by.dense else Staircase(rank_by, ladder)
    problem = _Problem(ladder, [stairs[name] for name in open_], limits, rank)
    at = problem.weighing(worth).solve()
    if closely and len(open_) > 1 and problem.slack(at).max() > 1:
        _reject_contradiction(open_, problem.costs(at), problem.limits, np.array([costs[name].dense for name in open_]))
    return ladder.keep(at)


@dataclass(frozen=True)
class _Problem:
    """The ladders, the costs that bind and their limits; a state is an integer array `at` (G)."""

    ladder: Ladder
    stairs: list[Staircase]
    limits: Floats
    rank: Staircase | None = None
    """The cost that importance is divided by; None: those that bind."""
    shares: tuple[float, ...] = SMALLEST_SHARES
    """Of the uniform width: the floors to try, until one lets all targets be met closely."""

    def costs(self, at: Ints) -> Floats:
        return np.array([stair(at) for stair in self.stairs])

    def fits(self, at: Ints) -> bool:
        return all(stair(at) <= limit for stair, limit in zip(self.stairs, self.limits, strict=True))

    def prices(self, at: Ints) -> Floats:
        """Of each binding cost, in parts of its limit; last of the cost that is ranked by, if it is another (., G)."""
        own = [stair.price(at) / limit for stair, limit in zip(self.stairs, self.limits, strict=True)]
        return np.array(own if self.rank is None else [*own, self.rank.price(at) / self.rank(self.ladder.rungs)])

    def weighing(self, worth: Floats | None) -> _Problem:
        """The problem with each group worth this (G); where it is not known, what the group costs while all is kept."""
        ladder = self.ladder
        weights = self.prices(ladder.rungs)[: len(self.stairs)].sum(axis=0) * ladder.full / ladder.block
        shares: tuple[float, ...] = SMALLEST_SHARES
        if worth is not None and (worth > 0).any():
            known = worth > 0
            weights = np.where(known, worth, weights * worth[known].sum() / max(weights[known].sum(), 1e-300))
            shares = SMALLEST_SHARES[1:]
        return replace(self, ladder=ladder.weighing(weights / max(weights.mean(), 1e-300)), shares=shares)

    def tilted(self, prices: Floats, tilt: float) -> Floats:
        """Logarithm of one price per group (G) from those of the costs: their sum, times a power of second over first.

        Without a tilt what weighs on either target goes alike; the steeper it is, the more a target that would be
        undershot is spent on purpose.
        """
        # What saves nothing at all has a price as good as none, and is kept to the last.
        logarithms = np.log(np.maximum(prices, 1e-30))
        total: Floats = np.logaddexp.reduce(logarithms, axis=0) if self.rank is None else logarithms[-1]
        return total + tilt * (logarithms[1] - logarithms[0]) if tilt else total

    def changes(self, at: Ints, by: int) -> Floats:
        return np.array([stair.change(at, by) for stair in self.stairs])

    def slack(self, at: Ints) -> Floats:
        """What is left below each limit, in units of the costliest further block; 0 where nothing is left to add."""
        rises = self.changes(at, 1)
        dearest = np.where(np.isfinite(rises), rises, 0.0).max(axis=1)
        return np.asarray(np.where(dearest > 0, (self.limits - self.costs(at)) / np.maximum(dearest, 1e-300), 0.0))

    def solve(self) -> Ints:
        uniform = _largest(lambda share: self.fits(self.ladder.at_share(share)), 0.0, 1.0, 30)
        found = []
        for share in self.shares:
            found.append(self.solve_above(self.ladder.at_share(share * uniform)))
            if self.slack(found[-1]).max() < 1:
                return found[-1]
        # Thinner groups did not bring the targets together either, so no group is thinned for it.
        return found[0]

    def solve_above(self, floor: Ints) -> Ints:
        """The plan that keeps at least this state (G), which fits."""
        prices, tilt = self.prices(self.ladder.rungs), 0.0
        for halvings in HALVINGS:
            prices = self.settle(prices, tilt, floor)
            if len(self.stairs) == 2:
                tilt = self.balance(prices, floor, halvings)
        at = self.fill(self.at_tilt(prices, tilt, floor, 45), tilt)
        return self.trade(at, floor, tilt) if len(self.stairs) == 2 else at

    def settle(self, prices: Floats, tilt: float, floor: Ints) -> Floats:
        """Prices that agree with the network they lead to. Geometric means, or two coupled groups would take turns."""
        last = None
        for _ in range(12):
            at = self.at_tilt(prices, tilt, floor, 20)
            if last is not None and (at == last).all():
                break
            last = at
            prices = np.sqrt(prices * self.prices(at))
        return prices

    def at_tilt(self, prices: Floats, tilt: float, floor: Ints, halvings: int) -> Ints:
        """The largest network at these relative prices (targets, G), tilted, that fits; at least `floor`."""
        tilted = self.tilted(prices, tilt)

        def at(level: float) -> Ints:
            return np.maximum(self.ladder.at_price(tilted - level), floor)

        return at(_largest(lambda level: self.fits(at(level)), -200.0, 200.0, halvings))

    def balance(self, prices: Floats, floor: Ints, halvings: int) -> float:
        """The tilt of two prices at which both targets bind."""

        def second_binds(tilt: float) -> bool:
            used = self.costs(self.at_tilt(prices, tilt, floor, 20)) / self.limits
            return bool(used[1] > used[0])

        return _largest(second_binds, -STEEPEST, STEEPEST, halvings)

    def fill(self, at: Ints, tilt: float) -> Ints:
        """Add the best next blocks that fit, by exact costs, until none does."""
        at = at.copy()
        while True:
            rises = self.changes(at, 1)
            can = (rises <= (self.limits - self.costs(at))[:, None]).all(axis=0)
            if not can.any():
                return at
            candidates = np.flatnonzero(can)
            each = rises[:, candidates] / self.limits[:, None]
            if self.rank is not None:
                each = np.vstack([each, self.rank.change(at, 1)[candidates] / self.rank(self.ladder.rungs)])
            worth = self.ladder.next_value(at)[candidates] - self.tilted(each, tilt)
            ranked = candidates[np.argsort(-worth, kind="stable")]
            at[ranked[: self.longest(at, ranked)]] += 1

    def longest(self, at: Ints, ranked: Ints) -> int:
        """How many of the ranked groups can go one rung up together; at least the first, which is known to fit."""
        low, high = 1, len(ranked) + 1
        while high - low > 1:
            middle = (low + high) // 2
            trial = at.copy()
            trial[ranked[:middle]] += 1
            low, high = (middle, high) if self.fits(trial) else (low, middle)
        return low

    def trade(self, at: Ints, floor: Ints, tilt: float) -> Ints:
        """Bring both costs nearer to their limits: one group a rung down, another up, while less is left unspent."""
        for _ in range(MOST_TRADES):
            unspent = (self.limits - self.costs(at)) / self.limits
            up = self.changes(at, 1) / self.limits[:, None]
            if (unspent < up.min(axis=1)).all():
                break
            down = np.where(at > floor, self.changes(at, -1) / self.limits[:, None], np.inf)
            better = self.best_swap(at, unspent, up, down)
            if better is None:
                break
            at = self.fill(better, tilt)
        return at

    def best_swap(self, at: Ints, unspent: Floats, up: Floats, down: Floats) -> Ints | None:
        """The swap that leaves least of the less used limit unspent, if any does better than none."""
        risers, fallers = _spread(up), _spread(down)
        left = unspent[:, None, None] - up[:, risers, None] - down[:, None, fallers]
        worst = np.where((left >= 0).all(axis=0), left.max(axis=0), np.inf).ravel()
        # Sums of two exact changes leave out what the two groups share, so the best few are tried.
        for pair in np.argsort(worst, kind="stable")[:8]:
            if worst[pair] >= unspent.max():
                break
            trial = at.copy()
            trial[risers[pair // len(fallers)]] += 1
            trial[fallers[pair % len(fallers)]] -= 1
            used = self.costs(trial) / self.limits
            if (used <= 1).all() and (1 - used).max() < unspent.max():
                return trial
        return None


def _spread(changes: Floats) -> Ints:
    """At most 200 of the groups that can change, of all sizes of change."""
    possible = np.flatnonzero(np.isfinite(changes).all(axis=0))
    by_size = possible[np.argsort(np.abs(changes[:, possible]).max(axis=0), kind="stable")]
    return by_size[np.unique(np.linspace(0, len(by_size) - 1, 200).astype(np.int64))] if len(by_size) > 200 else by_size


def _reject_contradiction(names: list[str], reached: Floats, limits: Floats, dense: Floats) -> None:
    missed = (limits - reached) / dense
    worst = int(np.argmax(missed))
    if missed[worst] <= CONTRADICTION:
        return
    asked = [f"{name} at {part:.3f}" for name, part in zip(names, limits / dense, strict=True)]
    most = f"{reached[worst] / dense[worst]:.3f}"
    raise TargetError(
        f"the targets contradict each other: the others leave no more than {most} of {names[worst]}",
        seen=", ".join(asked),
        mend=f"leave {names[worst]} out, or set it to at most {most}",
    )


def _largest(holds: Callable[[float], bool], low: float, high: float, halvings: int) -> float:
    """The largest number in between for which it holds, by halving; `low` is taken to do."""
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
