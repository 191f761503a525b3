"""Network slimming (Liu et al. 2017): an L1 penalty on gammas, one threshold over all layers, fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.channel_values import gammas, magnitudes
from effp_fx.methods.problem import Problem, pose, two_sessions
from effp_fx.methods.ride import Ride, add_scaled, mean_over_time


@dataclass(frozen=True)
class Slimming:
    """Session A trains with the penalty, the smallest |gamma| of all layers go, session B fine-tunes.

    Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017):

        loss = loss_network + lambda * sum |gamma|      its gradient by gamma is lambda * sign(gamma)
        keep channel c if |gamma_c| >= t                t one quantile over all layers

    Differences: t is the lowest at which both targets are met, where the paper asks for a share of the channels.
    lambda is set at every step so that the penalty's gradient is `pressure` times the network's over all gammas (the
    paper's 1e-4 is right for one loss and 160 epochs).
    Coupled gammas count with their mean; channels without one by the norm of their filters.
    """

    pressure: float = 0.03
    """Ten times as much cost the small SSD three points of mAP (one seed, half the FLOPs: 55.1 and 51.9)."""

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)
        return two_sessions(
            problem,
            trainer,
            lambda _: problem.above_threshold(magnitudes(problem.analysis, problem.tensors)),
            lambda optimizer, steps: Penalty(problem, optimizer, steps, self.pressure),
        )


def penalty_slopes(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of sum |gamma|: the sign of each."""
    return {name: value.detach().sign() for name, value in values.items()}


class Penalty(Ride):
    """Adds the gradient of the penalty before each step."""

    def __init__(self, problem: Problem, optimizer: torch.optim.Optimizer, total_steps: int, pressure: float) -> None:
        super().__init__(problem, optimizer, total_steps)
        self.pressure = pressure
        self.gradient: float | None = None
        """Running mean of the network's gradient: mean |dloss/dgamma|."""
        self.gammas = {name: self.tensors[name] for name, _ in gammas(problem.analysis)}

    @torch.no_grad()
    def before_step(self) -> None:
        """Add lambda * sign(gamma)."""
        found = {name: value.grad for name, value in self.gammas.items() if value.grad is not None}
        if not found:
            return
        total = sum(float(gradient.abs().sum()) for gradient in found.values())
        count = sum(gradient.numel() for gradient in found.values())
        self.gradient = mean_over_time(self.gradient, total / count)
        add_scaled(found, penalty_slopes(self.gammas), self.pressure * self.gradient)

    def after_step(self) -> None:
        """Nothing."""

    def own_state(self) -> dict[str, Any]:
        """The running mean."""
        return {"gradient": self.gradient}

    def load_own_state(self, saved: dict[str, Any]) -> None:
        """Take it over."""
        self.gradient = saved["gradient"]
