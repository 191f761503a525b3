"""EFFP itself (Ko et al. 2024), through `effp_fx.Session`; and the same without its third stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from effp_fx.lowering import COSTS
from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.session import Session


@dataclass(frozen=True)
class EFFP:
    """One session: indicator, prune, regrow (Ko, Kang, Kim, AICAS 2024). docs/design.md says what is ours in it."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `Session`, beside targets and seed."""

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        session = trainer.fit(
            model, budget.epochs, lambda optimizer, steps: self._session(model, optimizer, steps, trainer, budget)
        )
        assert isinstance(session, Session)  # what `attach` made
        small = session.compact()
        costs = {name: build(session.analysis) for name, build in COSTS.items()}
        flops, params = ((cost.dense, float(cost(session.keep))) for cost in costs.values())
        return Outcome(small, flops, params, notes={"updates": [update.to_dict() for update in session.history]})

    def _session(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, trainer: Trainer, budget: Budget
    ) -> Session:
        return Session(
            model,
            optimizer,
            steps,
            target_flops=budget.flops,
            target_params=budget.params,
            round_to=budget.round_to,
            ignore=budget.ignore,
            example_inputs=trainer.example,
            seed=budget.seed,
            **self.options,
        )


def without_regrowing() -> EFFP:
    """EFFP without its third stage: the first update prunes to the targets, later ones can only confirm it."""
    return EFFP({"regrow": 0.0})
