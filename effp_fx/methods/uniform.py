"""The same width everywhere, from scratch: the baseline that no method may lose to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from effp_fx.groups import Keep
from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.problem import Problem, pose


@dataclass(frozen=True)
class Uniform:
    """Cut the same share of every group before the first step, and train the narrower network for all epochs.

    MobileNet's width multiplier (Howard et al. 2017): every layer keeps the share a of its channels. Differences: a is
    the largest at which both targets are met, and a group keeps at least what it must and whole blocks.
    """

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)
        cut = problem.cut(uniform_mask(problem))
        trainer.fit(cut.model, budget.epochs)
        return problem.outcome(cut)


def uniform_mask(problem: Problem) -> Keep:
    """The first channels of every group, the same share of each."""
    ladder = problem.ladder(np.ones(problem.analysis.channels))
    return problem.widest(lambda share: ladder.keep(ladder.at_share(share)))
