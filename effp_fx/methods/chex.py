"""CHEX (Hou et al. 2022): prune by column subset selection, regrow what the kept filters cannot express, in turns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from effp_fx.groups import Keep
from effp_fx.importance import Floats
from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.channel_values import filters, magnitudes
from effp_fx.methods.problem import Problem, pose
from effp_fx.methods.ride import Mask, Ride, evenly


@dataclass(frozen=True)
class CHEX:
    """One session; at every update all channels are on again, some go, and some of those come back at once.

    Hou, Qin, Sun, Ma, Yuan, Xu, Chen, Jin, Xie, Kung, "CHEX: CHannel EXploration for CNN Model Compression" (CVPR
    2022). With W (D x C) the filters of a layer as columns and k its number of channels to keep:

        k      = how many of its |gamma| lie above one quantile over all layers, that of the target
        V_k    = the k leading right singular vectors of W (C x k)
        score  = ||row j of V_k||_2                              column subset selection: the k highest stay
        regrow = floor(d * C) of the others, d = d0 / 2 * (1 + cos(pi * i / last)), none at the last update,
                 drawn by softmax_j ||w_j - W_kept W_kept^+ w_j||   what the kept ones cannot express
        with the weights that they had when last alive

    Differences: updates are `updates` up to `end` of the session (the paper: every 2 epochs); the quantile is the one
    that meets both targets; the filters of coupled layers are put on top of each other in W.
    """

    updates: int = 20
    end: float = 0.72
    regrow: float = 0.3
    """d0, of a layer's channels."""

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)
        rider = trainer.fit(model, budget.epochs, lambda optimizer, steps: Exchange(problem, optimizer, steps, self))
        assert isinstance(rider, Exchange)  # what `attach` made
        return problem.outcome(problem.cut(rider.mask.keep))


def leverage(weight: NDArray[np.float64], kept: int) -> Floats:
    """||row j of V_k||_2 for each column j of a weight (D x C), k = `kept`."""
    right = np.linalg.svd(weight, full_matrices=False)[2][:kept]
    return np.asarray(np.linalg.norm(right, axis=0))


def beyond(weight: NDArray[np.float64], kept: Keep) -> Floats:
    """For each column of a weight (D x C) the length of its part outside of the span of the kept columns."""
    basis = np.linalg.qr(weight[:, kept])[0]
    return np.asarray(np.linalg.norm(weight - basis @ (basis.T @ weight), axis=0))


class Exchange(Ride):
    """The updates, and the mask between them."""

    def __init__(self, problem: Problem, optimizer: torch.optim.Optimizer, total_steps: int, options: CHEX) -> None:
        super().__init__(problem, optimizer, total_steps)
        self.mask = Mask(problem, optimizer)
        self.regrow = options.regrow
        self.update_steps = evenly(total_steps, options.end / options.updates, options.end, options.updates)

    def before_step(self) -> None:
        """Nothing."""

    def after_step(self) -> None:
        """Hold, and update where it is due."""
        self.mask.holder.zero()
        if self.step in self.update_steps:
            self.mask.release()
            keep = self._pruned()
            self.mask.hold(self._regrown(keep))

    def _pruned(self) -> Keep:
        analysis = self.problem.analysis
        wide = self.problem.above_threshold(magnitudes(analysis, self.tensors))
        scores = np.zeros(analysis.channels)
        for group in analysis.groups:
            part = slice(group.start, group.stop)
            scores[part] = leverage(filters(analysis, self.tensors, group), int(np.count_nonzero(wide[part])))
        ladder = self.problem.ladder(scores)
        counts = np.bincount(ladder.group_of, wide, len(ladder.rungs))
        return ladder.keep(((counts - ladder.least) // ladder.block).astype(np.int64))

    def _regrown(self, keep: Keep) -> Keep:
        last = self.update_steps[-1]
        share = 0.5 * self.regrow * (1 + math.cos(math.pi * self.step / last))
        random = np.random.default_rng((self.problem.budget.seed, self.step))
        keep = keep.copy()
        for group in self.problem.analysis.groups:
            kept = keep[group.start : group.stop].copy()
            count = min(int(share * group.channels), int(np.count_nonzero(~kept)))
            if self.step >= last or not count:
                continue
            length = beyond(filters(self.problem.analysis, self.tensors, group), kept)[~kept]
            chances = np.exp(length - length.max())
            back = random.choice(np.flatnonzero(~kept), count, replace=False, p=chances / chances.sum())
            keep[group.start + back] = True
        return keep

    def own_state(self) -> dict[str, Any]:
        """The mask."""
        return {"mask": self.mask.state_dict()}

    def load_own_state(self, saved: dict[str, Any]) -> None:
        """Take it over."""
        self.mask.load_state_dict(saved["mask"])
