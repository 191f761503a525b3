"""The methods of the session's bench, by the names of its table: those of `effp_fx.methods` on its own plain loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from effp_fx import lowering
from effp_fx.groups import Analysis, Keep
from effp_fx.methods import EFFP, METHODS, Attach, Budget, Method, Rider

_SCORED = 256
"""Images that a method may choose by."""


@dataclass
class Run:
    """What a method has to work with."""

    model: nn.Module
    scenes: Any
    recipe: Any
    seed: int
    target: float
    options: dict[str, Any]
    train: Callable[..., Any]
    score: Callable[..., dict[str, float]]
    notes: dict[str, Any] = field(default_factory=dict)

    def outcome(self, method: Method, *, params: bool = True) -> nn.Module:
        """The trained network; what the method has to say goes into the notes. `params`: whether they have a target."""
        budget = Budget(self.recipe.epochs, self.target, self.target if params else None, seed=self.seed)
        found = method(self.model, SceneTrainer(self), budget)
        self.notes.update(found.notes)
        return found.model


@dataclass
class SceneTrainer:
    """A `methods.Trainer` over scenes in memory. A second session has an order of its own."""

    run: Run
    example: None = None
    fits: int = 0

    def fit(self, model: nn.Module, epochs: int, attach: Attach | None = None) -> Rider | None:
        """Train by the plain loop."""
        run = self.run
        recipe = replace(run.recipe, epochs=epochs)
        put_on = (lambda _, optimizer, steps: attach(optimizer, steps)) if attach else (lambda *_: None)
        rider: Rider | None = run.train(model, run.scenes, recipe, run.seed + 1000 * self.fits, put_on)
        self.fits += 1
        return rider

    def score(self, model: nn.Module) -> float:
        """mAP on images that were trained on."""
        scenes = self.run.scenes
        shown = replace(scenes, images=scenes.images[:_SCORED], targets=scenes.targets[:_SCORED])
        return float(self.run.score(model, shown)["map"])

    def batches(self, count: int) -> Sequence[Any]:
        """The first batches of the first epoch."""
        generator = torch.Generator().manual_seed(self.run.seed)
        return list(itertools.islice(self.run.scenes.batches(self.run.recipe.batch, generator), count))


def of(name: str) -> Callable[[Run], nn.Module]:
    """A method of `effp_fx.methods` by its name there."""
    return lambda run: run.outcome(METHODS[name])


def effp(run: Run) -> nn.Module:
    """One session with both targets."""
    return run.outcome(EFFP(run.options))


def effp_without_regrowing(run: Run) -> nn.Module:
    """EFFP without its third stage: the first update prunes to the targets, later ones can only confirm it."""
    return run.outcome(EFFP({**run.options, "regrow": 0.0}))


def effp_for_flops(run: Run) -> nn.Module:
    """EFFP with a target for the FLOPs alone."""
    return run.outcome(EFFP(run.options), params=False)


def effp_without_cost(run: Run) -> nn.Module:
    """EFFP with channels ranked over all groups by their magnitude alone, whatever they cost."""

    def by_rank(analysis: Analysis, targets: lowering.Targets, scores: Any, **_: Any) -> Keep:
        costs = {name: build(analysis) for name, build in lowering.COSTS.items()}
        wanted = targets.absolute(costs)
        worth = np.array(scores, dtype=np.float64)
        for group in analysis.groups:  # nobody is emptied: the best of a group comes last of all
            part = slice(group.start, group.stop)
            worth[group.start + int(np.argmax(worth[part]))] = np.inf
        order = np.argsort(worth, kind="stable")
        low, high = 0, analysis.channels
        while low < high:
            middle = (low + high) // 2
            keep = analysis.keep_all()
            keep[order[:middle]] = False
            met = all(costs[name](keep) <= limit for name, limit in wanted.items())
            low, high = (low, middle) if met else (middle + 1, high)
        keep = analysis.keep_all()
        keep[order[:low]] = False
        return keep

    with _choosing(by_rank):
        return effp(run)


def effp_by_dense_cost(run: Run) -> nn.Module:
    """EFFP with each group worth what it costs in the dense network, as in `prune`, whatever the loss says of it."""
    choose = lowering.choose

    def by_cost(*given: Any, worth: Any = None, **named: Any) -> Keep:
        return choose(*given, **named)

    with _choosing(by_cost):
        return effp(run)


@contextmanager
def _choosing(choose: Any) -> Iterator[None]:
    """Sessions choose their masks so in here."""
    before, lowering.choose = lowering.choose, choose
    try:
        yield
    finally:
        lowering.choose = before


METHODS_BY_TITLE: dict[str, Callable[[Run], nn.Module]] = {
    "dense": of("dense"),
    "uniform": of("uniform"),
    "one-shot gamma": of("gamma"),
    "one-shot L1": of("l1"),
    "EFFP without regrowing": effp_without_regrowing,
    "EFFP": effp,
    "EFFP, FLOPs alone": effp_for_flops,
    "EFFP without cost": effp_without_cost,
    "EFFP, groups by dense cost": effp_by_dense_cost,
}
