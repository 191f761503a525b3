"""EagleEye (Li et al. 2020): random candidates, batch norms re-estimated, the best one fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from effp_fx import binding, importance
from effp_fx.groups import Keep
from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.problem import Problem, pose, two_sessions
from effp_fx.plan import from_keep
from effp_fx.recalibrate import recalibrate
from effp_fx.subject import rewrapped


@dataclass(frozen=True)
class EagleEye:
    """Train dense, draw candidates, judge each with adapted batch norms, fine-tune the best.

    Li, Wu, Su, Wang, Lin, "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning" (ECCV 2020).
    A candidate keeps a random share of each layer, its filters of largest L1 norm, and is accepted if

        |FLOPs / FLOPs_dense - target| <= 0.005

    Its batch norms are re-estimated with about 100 forward passes in train mode, without gradients, and it is scored on
    images of the training set. Differences: a draw is widened or narrowed as a whole until no target is exceeded
    before the rule is applied to the target that binds, for drawing alone finds two targets too seldom; 20 candidates,
    where the paper draws far more.
    """

    candidates: int = 20
    batches: int = 100
    tolerance: float = 0.005
    draws: int = 500
    """Of which candidates are accepted, at most; where none is, the nearest is taken."""

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)

        def choose(_: Any) -> Keep:
            found = draw(problem, self)
            adapted = trainer.batches(self.batches)
            scores = [trainer.score(candidate(problem, keep, adapted)) for keep in found]
            return found[int(np.argmax(scores))]

        return two_sessions(problem, trainer, choose)


def draw(problem: Problem, options: EagleEye) -> list[Keep]:
    """The masks of all candidates."""
    random = np.random.default_rng(problem.budget.seed)
    ladder = problem.ladder(importance.l1(problem.analysis, problem.tensors))
    accepted: list[Keep] = []
    nearest: tuple[float, Keep] | None = None
    for _ in range(options.draws):
        shares = random.uniform(0.1, 1.0, len(ladder.rungs))

        def keep_at(part: float, shares: Any = shares) -> Keep:
            # At a half the draw itself: below it all shares shrink to nothing, above it they grow to the whole.
            wide = 2 * part * shares if part <= 0.5 else shares + (2 * part - 1) * (1 - shares)
            return ladder.keep(np.floor(wide * ladder.rungs + 1e-9).astype(np.int64))

        keep = problem.widest(keep_at)
        missed = short_of(problem, keep)
        if missed <= options.tolerance and not any(np.array_equal(keep, other) for other in accepted):
            accepted.append(keep)
        if nearest is None or missed < nearest[0]:
            nearest = missed, keep
        if len(accepted) == options.candidates:
            break
    assert nearest is not None
    return accepted or [nearest[1]]


def short_of(problem: Problem, keep: Keep) -> float:
    """How far under the target that binds a mask is, as a part of the dense cost."""
    wanted = problem.targets.absolute(problem.costs)
    costs = problem.costs
    return min((limit - float(costs[name](keep))) / costs[name].dense for name, limit in wanted.items())


def candidate(problem: Problem, keep: Keep, batches: Any) -> nn.Module:
    """The compact network of a mask, not verified, its batch norms re-estimated."""
    found = problem.found
    small = binding.apply(problem.network, from_keep(problem.analysis, keep, found.attributes(keep)))
    recalibrate(small, batches, like=found.example)
    return rewrapped(problem.model, problem.path, small, inplace=False)
