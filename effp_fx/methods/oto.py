"""OTO (Chen et al. 2021): zero-invariant groups, a group penalty, and half-space projection as an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from effp_fx.groups import Analysis, Keep
from effp_fx.importance import Floats, Place, summed
from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.problem import Problem, pose
from effp_fx.methods.ride import Mask, Ride
from effp_fx.session.shrinking import Shrinking, owned


@dataclass(frozen=True)
class OTO:
    """One session of two phases: shrink groups, then project those to zero that a step turns round.

    Chen, Ji, Ding, Fang, Wang, Zhu, Liang, Shi, Yi, Tu, "Only Train Once: A One-Shot Neural Network Training And
    Pruning Framework" (NeurIPS 2021). A zero-invariant group x_g is a channel's filters, biases, gammas and betas:

        phase 1: loss = loss_network + lambda * sum_g ||x_g||_2
        phase 2: x^ = x - lr * (dloss/dx + lambda * x_g / ||x_g||);   x_g := 0 where x^_g . x_g < eps * ||x_g||^2

    Differences. The step from x to x^ is that of the optimizer at hand, momentum included. lambda is at every step the
    one at which the penalty's gradient of a group is `strength` times as long as the network's, on the mean of all
    groups. OTO has no target of its own: here projection stops where the targets are met, and at `end` of the session
    the groups of least norm per cost go as well if they are not; the rest of it trains what is left, unpenalised.
    """

    strength: float = 0.03
    """Ten times as much took half of the small SSD's mAP (one seed, half the FLOPs: 59.7 and 29.5)."""
    epsilon: float = 0.0
    """eps, of the half-space."""
    middle: float = 0.4
    """Part of the session at which phase 2 begins."""
    end: float = 0.7

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)
        rider = trainer.fit(model, budget.epochs, lambda optimizer, steps: HalfSpace(problem, optimizer, steps, self))
        assert isinstance(rider, HalfSpace)  # what `attach` made
        return problem.outcome(problem.cut(rider.mask.keep), projected=rider.projected)


def inner(analysis: Analysis, places: Sequence[Place], one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> Floats:
    """The inner product of two values of each group (K)."""
    return summed(analysis, places, {name: one[name] * two[name] for name, _ in places if name in one})[0]


class HalfSpace(Ride):
    """Penalty before a step, projection after it."""

    def __init__(self, problem: Problem, optimizer: torch.optim.Optimizer, total_steps: int, options: OTO) -> None:
        super().__init__(problem, optimizer, total_steps)
        self.options = options
        self.mask = Mask(problem, optimizer)
        self.shrinking = Shrinking(problem.analysis, self.tensors, options.strength)
        self.places = owned(problem.analysis)
        self.own = {name: self.tensors[name].detach() for name, _ in self.places}
        self.projected = 0
        """Channels that the half-space took."""
        self.before: dict[str, Tensor] = {}
        self.middle, self.end = max(int(options.middle * total_steps), 1), max(int(options.end * total_steps), 2)
        ladder = problem.ladder(np.zeros(problem.analysis.channels))
        self.group_of, self.least = ladder.group_of, ladder.least

    @torch.no_grad()
    def before_step(self) -> None:
        """Add lambda * x_g / ||x_g||, and remember x in phase 2."""
        if self.step >= self.end:
            return
        self.shrinking.press(self.mask.keep, self.step)
        if self.step >= self.middle:
            self.before = {name: value.clone() for name, value in self.own.items()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Project, and at the end of phase 2 go on to the targets."""
        self.mask.holder.zero()
        if self.before:
            self._project()
            self.before = {}
        if self.step == self.end:
            keep = self.problem.choose(self.shrinking.norms())
            self.mask.release()
            self.mask.hold(keep)

    def _project(self) -> None:
        analysis = self.problem.analysis
        squares = inner(analysis, self.places, self.before, self.before)
        cosines = inner(analysis, self.places, self.own, self.before) / np.maximum(squares, 1e-30)
        turned = np.flatnonzero(self.mask.keep & (squares > 0) & (cosines < self.options.epsilon))
        keep = self._without(self.mask.keep, turned[np.argsort(cosines[turned], kind="stable")])
        if (keep != self.mask.keep).any():
            self.projected += int(np.count_nonzero(self.mask.keep & ~keep))
            self.mask.release()
            self.mask.hold(keep)

    def _without(self, keep: Keep, turned: np.ndarray[Any, np.dtype[np.int64]]) -> Keep:
        """The mask without these channels, as far as the targets ask for it and the groups allow it."""
        keep = keep.copy()
        left = np.bincount(self.group_of, keep, len(self.least))
        for channel in turned:
            group = self.group_of[channel]
            if left[group] > self.least[group] and not self.problem.fits(keep):
                keep[channel] = False
                left[group] -= 1
        return keep

    def own_state(self) -> dict[str, Any]:
        """The mask and the running mean."""
        return {"mask": self.mask.state_dict(), "length": self.shrinking.length, "projected": self.projected}

    def load_own_state(self, saved: dict[str, Any]) -> None:
        """Take them over."""
        self.mask.load_state_dict(saved["mask"])
        self.shrinking.length, self.projected = saved["length"], saved["projected"]
