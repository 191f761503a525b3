"""Group Fisher (Liu et al. 2021): squared gradients of the channels' masks over the cost they save, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from effp_fx.groups import Analysis, Keep
from effp_fx.importance import Floats, summed
from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.channel_values import scales
from effp_fx.methods.problem import Problem, pose
from effp_fx.methods.ride import Mask, Ride, evenly


@dataclass(frozen=True)
class GroupFisher:
    """Session A trains dense; in the first part of session B channels go, update after update; the rest trains on.

    Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao, Zhang, "Group Fisher Pruning for Practical Network
    Compression" (ICML 2021), with m_c a mask on channel c, shared by all layers that it is coupled with:

        s_c = sum over batches of (dloss/dm_c)^2        dloss/dm_c = gamma * dloss/dgamma + beta * dloss/dbeta
        the channels of least s_c / (cost that c saves) go, once in some steps

    Differences: gradients are those of a whole batch, the paper squares each image's; an update takes as many channels
    as bring the costs one even step nearer to the targets, the paper takes one channel every 10 iterations, which a
    short run has not the iterations for. The saved cost is the sum over the targets of the part of the dense cost.
    """

    updates: int = 20
    end: float = 0.5
    """Part of session B at which the last channels go."""

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)
        first, second = budget.halves()
        trainer.fit(model, first)
        rider = trainer.fit(
            model, second, lambda optimizer, steps: Descent(problem, optimizer, steps, self.updates, self.end)
        )
        assert isinstance(rider, Descent)  # what `attach` made
        return problem.outcome(problem.cut(rider.mask.keep), updates=rider.costs_over_time)


def mask_gradients(analysis: Analysis, tensors: Mapping[str, Tensor]) -> Floats:
    """dloss/dm of each channel (K): its gammas and betas, or filters and biases, times their gradients, added up."""
    products = {name: value.detach() * value.grad for name, value in tensors.items() if value.grad is not None}
    return summed(analysis, scales(analysis), products)[0]


class Descent(Ride):
    """Gathers the squares, and at each update takes channels off."""

    def __init__(
        self, problem: Problem, optimizer: torch.optim.Optimizer, total_steps: int, updates: int, end: float
    ) -> None:
        super().__init__(problem, optimizer, total_steps)
        self.mask = Mask(problem, optimizer)
        self.squares: Floats = np.zeros(problem.analysis.channels)
        self.update_steps = evenly(total_steps, end / updates, end, updates)
        self.costs_over_time: list[dict[str, float]] = []

    def before_step(self) -> None:
        """Gather."""
        self.squares += mask_gradients(self.problem.analysis, self.tensors) ** 2

    def after_step(self) -> None:
        """Hold, and update where it is due."""
        self.mask.holder.zero()
        if self.step not in self.update_steps:
            return
        progress = (self.update_steps.index(self.step) + 1) / len(self.update_steps)
        before = self.mask.keep
        keep = self._chosen(before, progress)
        if not keep.all():
            self.mask.release()
            self.mask.hold(keep)
        self.squares[:] = 0
        shares = {name: float(cost(keep)) / cost.dense for name, cost in self.problem.costs.items()}
        self.costs_over_time.append({"step": float(self.step), **shares})

    def _chosen(self, alive: Keep, progress: float) -> Keep:
        problem = self.problem
        wanted = problem.targets.absolute(problem.costs)
        saved = sum(problem.costs[name].marginal(alive) / problem.costs[name].dense for name in wanted)
        scores = self.squares / np.maximum(saved, 1e-30)
        # What is off stays off: it comes last, whatever it was worth.
        return problem.above_threshold(np.where(alive, scores, -1.0), problem.on_the_way(progress)) & alive

    def own_state(self) -> dict[str, Any]:
        """The mask, the squares, the books."""
        return {
            "mask": self.mask.state_dict(),
            "squares": torch.from_numpy(self.squares.copy()),
            "costs": self.costs_over_time,
        }

    def load_own_state(self, saved: dict[str, Any]) -> None:
        """Take them over."""
        self.mask.load_state_dict(saved["mask"])
        self.squares = saved["squares"].cpu().numpy().copy()
        self.costs_over_time = list(saved["costs"])
