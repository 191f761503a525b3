"""Train, cut once by a score of the weights, fine-tune: L1 (Li et al. 2017), and gamma without sparsity training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from effp_fx import importance
from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.problem import pose, two_sessions


@dataclass(frozen=True)
class OneShot:
    """Half of the epochs dense, one cut to both targets, fine-tuning in the other half.

    `l1` is Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets" (ICLR 2017): the filters of
    the smallest s_j = sum |W_j| go, and the network is trained again. Differences: the paper sets each layer's share
    by hand after a study of its sensitivity, here the search of `prune` finds them for the targets; filters that a
    residual sum couples are added up, where the paper lets the shortcut decide.

    `gamma` ranks by |gamma| in the same way: what slimming is without its penalty.
    """

    importance: Any = "l1"
    """As in `prune`."""

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)

        return two_sessions(
            problem,
            trainer,
            lambda _: problem.choose(importance.score(problem.analysis, problem.network, self.importance)),
        )
