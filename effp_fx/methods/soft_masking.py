"""SMCP (Humble et al. 2022): masks on what reads a channel, gradients straight through them to the dense weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from effp_fx.groups import Analysis, Keep, kept_flags
from effp_fx.importance import Floats, summed
from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.channel_values import readers
from effp_fx.methods.problem import Problem, pose
from effp_fx.methods.ride import Ride, evenly


@dataclass(frozen=True)
class SoftMasking:
    """One session in which masked channels go on learning and may come back, until the mask is fixed.

    Humble, Shen, Latorre, Darve, Alvarez, "Soft Masking for Cost-Constrained Channel Pruning" (ECCV 2022). With W the
    weights that read a channel and m its mask:

        forward with m * W;   dloss/dW := dloss/d(m * W)    straight through, so that W learns behind its mask
        importance of c = |sum over its weights of W * dloss/dW|, meaned over the steps since the last update
        m = the most importance whose cost is under a target that falls from the dense cost to the one asked for

    Differences: the form of the importance, a first-order Taylor score, is ours; the knapsack is the search of
    `prune`; the target falls in equal amounts; updates are `updates` over the first part of the session (the paper:
    every 80 iterations, 350 of 800 epochs with the mask fixed); the paper's rescaling of batch norms is left out.
    """

    updates: int = 20
    start: float = 0.05
    end: float = 0.56
    """Part of the session after which the mask is fixed."""

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)
        rider = trainer.fit(
            model,
            budget.epochs,
            lambda optimizer, steps: SoftMask(
                problem, optimizer, evenly(steps, self.start, self.end, self.updates), steps
            ),
        )
        assert isinstance(rider, SoftMask)  # what `attach` made
        return problem.outcome(problem.cut(rider.keep))


def products(analysis: Analysis, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Floats:
    """|sum of W * dloss/dW| over the weights that read each channel (K)."""
    values = {name: value.detach() * gradients[name] for name, value in weights.items() if name in gradients}
    return np.abs(summed(analysis, readers(analysis), values)[0])


class SoftMask(Ride):
    """Dense weights on the side: the model's own are masked while it runs, and dense while the optimizer steps."""

    def __init__(
        self, problem: Problem, optimizer: torch.optim.Optimizer, update_steps: tuple[int, ...], total_steps: int
    ) -> None:
        super().__init__(problem, optimizer, total_steps)
        self.update_steps = update_steps
        self.places = readers(problem.analysis)
        self.weights = {name: self.tensors[name] for name, _ in self.places}
        self.dense = {name: value.detach().clone() for name, value in self.weights.items()}
        self.keep: Keep = problem.analysis.keep_all()
        self.importance: Floats = np.zeros(problem.analysis.channels)

    @property
    def fixed(self) -> bool:
        """Whether the mask changes no more; from then on what is off learns no more either."""
        return self.step >= self.update_steps[-1]

    @torch.no_grad()
    def before_step(self) -> None:
        """Give the optimizer the dense weights, and gather importance."""
        if self.fixed:
            return
        for name, value in self.weights.items():
            value.copy_(self.dense[name])
        gradients = {name: value.grad for name, value in self.weights.items() if value.grad is not None}
        self.importance += products(self.problem.analysis, self.weights, gradients)

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the dense weights aside, and mask."""
        if self.step <= self.update_steps[-1]:
            for name, value in self.weights.items():
                self.dense[name].copy_(value)
        if self.step in self.update_steps:
            progress = (self.update_steps.index(self.step) + 1) / len(self.update_steps)
            self.keep = self._chosen(progress)
            self.importance[:] = 0
        for name, dim in self.places:
            flags = kept_flags(self.problem.analysis.tensors[name].dims[dim], self.keep)
            rows = torch.from_numpy(np.flatnonzero(~flags)).to(self.weights[name].device)
            self.weights[name].index_fill_(dim, rows, 0)

    def _chosen(self, progress: float) -> Keep:
        problem = self.problem
        return problem.choose(self.importance, problem.on_the_way(progress))

    def own_state(self) -> dict[str, Any]:
        """Dense weights, mask and importance."""
        return {
            "dense": {name: value.clone() for name, value in self.dense.items()},
            "keep": torch.from_numpy(self.keep.copy()),
            "importance": torch.from_numpy(self.importance.copy()),
        }

    def load_own_state(self, saved: dict[str, Any]) -> None:
        """Take them over; the model's own weights are masked already."""
        for name, value in saved["dense"].items():
            self.dense[name].copy_(value)
        self.keep = saved["keep"].cpu().numpy().copy()
        self.importance = saved["importance"].cpu().numpy().copy()
