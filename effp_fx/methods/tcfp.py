"""TCFP, the two-session predecessor of EFFP: sparsity training to the target capacity, a physical cut, fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from effp_fx.groups import Keep
from effp_fx.methods.base import Budget, Outcome, Rider, Trainer
from effp_fx.methods.problem import Problem, pose, two_sessions
from effp_fx.methods.ride import Ride
from effp_fx.session.options import Options
from effp_fx.session.pressure import prepared


@dataclass(frozen=True)
class TCFP:
    """Session A trains with equation (4), gammas are compared with a threshold, session B fine-tunes with alpha = 0.

    "Target capacity filter pruning" (the EFFP paper's group, 2022), as the EFFP paper (Ko, Kang, Kim, AICAS 2024)
    describes it:

        loss = loss_network + alpha * L_prune           equations (1) to (4), in `passes.PruningLoss`
        keep channel c if |gamma_c| >= t

    The pruning loss, alpha and the reference of each group are those of `Session`, so that the two differ by nothing
    but one session against two. Differences: gammas alone decide here, so the loss presses six times as far (small
    SSD, one seed, half the FLOPs: mAP 58.3 with a drift of 0.3, 55.6 with the 0.05 of `Session`); and t is the lowest
    at which both targets are met, for the loss leaves the network near the targets and not under them.
    """

    drift: float = 0.3

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)

        def choose(rider: Rider | None) -> Keep:
            assert isinstance(rider, Press)  # what `attach` made
            return problem.above_threshold(rider.pressure.magnitudes())

        return two_sessions(
            problem, trainer, choose, lambda optimizer, steps: Press(problem, optimizer, steps, self.drift)
        )


class Press(Ride):
    """Adds alpha times the gradient of the pruning loss before each step."""

    def __init__(self, problem: Problem, optimizer: torch.optim.Optimizer, total_steps: int, drift: float) -> None:
        super().__init__(problem, optimizer, total_steps)
        options = Options(drift=drift)
        self.pressure = prepared(problem.analysis, problem.costs, problem.targets, self.tensors, options, total_steps)

    def before_step(self) -> None:
        """Press."""
        self.pressure.press(getattr(self.optimizer, "grad_scale", None), self.step, silent=False)

    def after_step(self) -> None:
        """Nothing."""

    def own_state(self) -> dict[str, Any]:
        """Reference, alpha and the optimizer's gain."""
        return {"pressure": self.pressure.state_dict()}

    def load_own_state(self, saved: dict[str, Any]) -> None:
        """Take them over."""
        self.pressure.load_state_dict(saved["pressure"])
