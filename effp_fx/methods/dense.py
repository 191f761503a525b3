"""No pruning at all: what every method is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.problem import pose


@dataclass(frozen=True)
class Dense:
    """All epochs on the dense network. The targets are left alone."""

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        costs = pose(model, trainer, budget).costs
        trainer.fit(model, budget.epochs)
        flops, params = costs["flops"].dense, costs["params"].dense
        return Outcome(model, (flops, flops), (params, params))
