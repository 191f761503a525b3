"""A model, its channels and its targets, as all methods see them: choose a mask, cut to it, compare, count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from effp_fx import cost, lowering
from effp_fx.budget import SMALLEST_SHARES
from effp_fx.cost import Ints
from effp_fx.groups import Analysis, Keep
from effp_fx.importance import Floats
from effp_fx.ladder import Ladder, build_ladder
from effp_fx.lowering import COSTS, Targets
from effp_fx.methods.base import Attach, Budget, Outcome, Rider, Trainer
from effp_fx.session.rehearsal import rehearse
from effp_fx.subject import network_of, rewrapped
from effp_fx.tracing import Tracing

_HALVINGS = 24
_TILTS = 14
STEEPEST = 3.0
"""How far a threshold is tilted between two costs, at most."""


@dataclass(frozen=True)
class Cut:
    """A compact model, not trained on yet, and how near it is to the masked one."""

    model: nn.Module
    keep: Keep
    error: float


@dataclass(frozen=True)
class Problem:
    """What a method works on. The analysis is that of `Session`: made and rehearsed on a copy with random values."""

    model: nn.Module
    network: nn.Module
    path: str
    found: Tracing
    budget: Budget

    @property
    def analysis(self) -> Analysis:
        """Channels, groups, costs, and the captured graphs."""
        return self.found.analysis

    @property
    def targets(self) -> Targets:
        """What the last mask has to meet."""
        return self.budget.targets

    @cached_property
    def costs(self) -> Mapping[str, cost.Cost]:
        """By name."""
        return {name: build(self.analysis) for name, build in COSTS.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the network by name."""
        return {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}

    def fits(self, keep: Keep, targets: Targets | None = None) -> bool:
        """Whether a mask is under all targets."""
        wanted = (targets or self.targets).absolute(self.costs)
        return all(float(self.costs[name](keep)) <= limit for name, limit in wanted.items())

    def choose(self, scores: Floats, targets: Targets | None = None) -> Keep:
        """The mask of most importance per cost under the targets, by scores (K): the search of `prune`."""
        return lowering.choose(self.analysis, targets or self.targets, scores, closely=False)

    def ladder(self, scores: Floats) -> Ladder:
        """Each group's channels in the order of the scores (K), in blocks as `round_to` and the group have them."""
        return build_ladder(self.analysis, scores, round_to=self.targets.round_to)

    def widest(self, keep_at: Callable[[float], Keep], targets: Targets | None = None) -> Keep:
        """The mask of the largest part (0 to 1) that is under the targets; `keep_at` must rise with the part."""
        return keep_at(self._largest_part(keep_at, targets))

    def _largest_part(self, keep_at: Callable[[float], Keep], targets: Targets | None) -> float:
        low, high = 0.0, 1.0
        if self.fits(keep_at(high), targets):
            return high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.fits(keep_at(middle), targets) else (low, middle)
        return low

    def above_threshold(self, scores: Floats, targets: Targets | None = None) -> Keep:
        """The mask of one threshold over all groups, the lowest that is under the targets.

        This is the global quantile by which network slimming, TCFP and CHEX decide how much each layer keeps. Scores
        (K, 0 or more; below 0 for what must go) are compared as they are. Each group keeps at least what it must, and
        whole blocks.

        Ours: no group falls below half of what a uniform width would leave it, as in `prune` (a threshold alone left
        three groups of the YOLO-like net one channel of 64, and TCFP an mAP of 9.8). And of two targets a threshold
        alone would leave one unused, so it is t * r^a with r the channel's share of the one cost over its share of the
        other, and a just so steep that both are used up.
        """
        wanted = (targets or self.targets).absolute(self.costs)
        ladder = self.ladder(scores)
        uniform = self._largest_part(lambda share: ladder.keep(ladder.at_share(share)), targets)
        floor = ladder.at_share(SMALLEST_SHARES[0] * uniform)
        if len(wanted) < 2:
            return self._above(scores, floor, targets)
        whole = self.analysis.keep_all()
        one, two = (self.costs[name].marginal(whole) / self.costs[name].dense for name in wanted)
        logarithms = np.log(np.maximum(one, 1e-12)) - np.log(np.maximum(two, 1e-12))
        best, used, low, high = self._above(scores, floor, targets), 0.0, -STEEPEST, STEEPEST
        for _ in range(_TILTS):
            tilt = (low + high) / 2
            keep = self._above(scores * np.exp(tilt * logarithms), floor, targets)
            shares = [float(self.costs[name](keep)) / limit for name, limit in wanted.items()]
            if min(shares) > used:
                best, used = keep, min(shares)
            # The steeper it is, the more is kept of what weighs on the first.
            low, high = (low, tilt) if shares[0] > shares[1] else (tilt, high)
        return best

    def _above(self, scores: Floats, floor: Ints, targets: Targets | None) -> Keep:
        ladder = self.ladder(scores)
        ordered = np.sort(scores)

        def keep_at(part: float) -> Keep:
            count = int(part * len(ordered))
            limit = ordered[len(ordered) - count] if count else np.inf
            above = np.bincount(ladder.group_of, scores >= limit, len(ladder.rungs))
            return ladder.keep(np.clip((above - ladder.least) // ladder.block, floor, ladder.rungs).astype(np.int64))

        return self.widest(keep_at, targets)

    def on_the_way(self, progress: float) -> Targets:
        """Targets that fall in equal amounts from the dense costs (progress 0) to what is asked for (1)."""
        if progress >= 1:
            return self.targets
        wanted = self.targets.absolute(self.costs)
        parts = {name: 1 - progress * (1 - limit / self.costs[name].dense) for name, limit in wanted.items()}
        return Targets(parts.get("flops"), parts.get("params"), self.targets.round_to)

    def cut(self, keep: Keep) -> Cut:
        """The compact model. Raises VerificationError where it differs from the masked one."""
        lowered = lowering.lower(self.found, self.network, keep, lambda _: None)
        if not lowered.verification.equal:
            raise lowering.differs(lowered.verification)
        small = rewrapped(self.model, self.path, lowered.model, inplace=False)
        return Cut(small, keep, lowered.verification.max_relative_error)

    def outcome(self, cut: Cut, **notes: Any) -> Outcome:
        """What a method returns, once the compact model is trained."""
        before_after = {name: (c.dense, float(c(cut.keep))) for name, c in self.costs.items()}
        return Outcome(cut.model, before_after["flops"], before_after["params"], cut.error, notes)


def pose(model: nn.Module, trainer: Trainer, budget: Budget) -> Problem:
    """Find the channels of a model and make sure that the targets can be met. The model is left as it was.

    Raises whatever tracing, the search for a plan and the verification raise.
    """
    network, path = network_of(model)
    traced = rehearse(network, trainer.example, budget.targets, budget.ignore, None, lambda _: None)
    return Problem(model, network, path, replace(traced, model=network), budget)


def two_sessions(
    problem: Problem, trainer: Trainer, choose: Callable[[Rider | None], Keep], attach: Attach | None = None
) -> Outcome:
    """Train dense, cut once, train on: the pipeline of most methods. Each session has a schedule of its own.

    Args:
        problem: the model and its targets.
        trainer: of both sessions.
        choose: the mask, once the first session is over; it gets the rider of that session.
        attach: what rides on the first session.
    """
    first, second = problem.budget.halves()
    rider = trainer.fit(problem.model, first, attach)
    cut = problem.cut(choose(rider))
    trainer.fit(cut.model, second)
    return problem.outcome(cut)
