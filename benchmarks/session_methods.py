"""The methods of the session's bench: dense, uniform, one shot and fine-tuning, EFFP; all with the same epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

import effp_fx
from effp_fx import api, binding, cost, lowering
from effp_fx.groups import Analysis, Keep
from effp_fx.plan import from_keep


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
    notes: dict[str, Any] = field(default_factory=dict)

    def half(self, part: int) -> Any:
        """The recipe of one of two sessions that share the epochs."""
        first = self.recipe.epochs // 2
        return replace(self.recipe, epochs=first if part == 0 else self.recipe.epochs - first)


def dense(run: Run) -> nn.Module:
    """No pruning: all epochs on the dense net."""
    run.train(run.model, run.scenes, run.recipe, run.seed)
    return run.model


def uniform(run: Run) -> nn.Module:
    """The same share of every group cut before the first step, just under the target: a narrower net, from scratch."""
    found = api.trace(run.model).tracing
    keep = _uniform(found.analysis, run.target)
    small = binding.apply(run.model, from_keep(found.analysis, keep, found.attributes(keep)))
    run.train(small, run.scenes, run.recipe, run.seed)
    return small


def _uniform(analysis: Analysis, target: float) -> Keep:
    flops = cost.flops(analysis)

    def kept(share: float) -> Keep:
        keep = np.zeros(analysis.channels, dtype=np.bool_)
        for group in analysis.groups:
            keep[group.start : group.start + max(1, round(share * group.channels))] = True
        return keep

    shares = np.linspace(1.0, 0.05, 2000)
    return kept(next(share for share in shares if flops(kept(share)) <= target * flops.dense))


def one_shot(importance: str) -> Callable[[Run], nn.Module]:
    """Half of the epochs dense, one cut to both targets, the other half fine-tuning with a schedule of its own."""

    def method(run: Run) -> nn.Module:
        run.train(run.model, run.scenes, run.half(0), run.seed)
        targets = {"target_flops": run.target, "target_params": run.target}
        small = effp_fx.prune(run.model, importance=importance, **targets)
        run.train(small, run.scenes, run.half(1), run.seed + 1000)
        return small

    return method


def effp(run: Run) -> nn.Module:
    """One session with both targets."""
    holder: dict[str, Any] = {}

    def attach(model: nn.Module, optimizer: Any, steps: int) -> Any:
        targets = {"target_flops": run.target, "target_params": run.target}
        holder["session"] = effp_fx.Session(model, optimizer, steps, seed=run.seed, **targets, **run.options)
        return holder["session"]

    session = run.train(run.model, run.scenes, run.recipe, run.seed, attach)
    run.notes["updates"] = [
        {"step": one.step, "flops": one.flops, "params": one.params, "pruned": one.pruned, "regrown": one.regrown}
        for one in session.history
    ]
    small: nn.Module = session.compact()
    return small


def effp_without_regrowing(run: Run) -> nn.Module:
    """EFFP without its third stage: the first update prunes to the targets, later ones can only confirm it."""
    run.options = run.options | {"regrow": 0.0}
    return effp(run)


def effp_without_cost(run: Run) -> nn.Module:
    """EFFP with channels ranked over all groups by their magnitude alone, whatever they cost."""
    before = lowering.choose

    def by_rank(analysis: Analysis, targets: lowering.Targets, scores: Any) -> Keep:
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

    lowering.choose = by_rank
    try:
        return effp(run)
    finally:
        lowering.choose = before


METHODS: dict[str, Callable[[Run], nn.Module]] = {
    "dense": dense,
    "uniform": uniform,
    "one-shot gamma": one_shot("gamma"),
    "one-shot L1": one_shot("l1"),
    "EFFP without regrowing": effp_without_regrowing,
    "EFFP": effp,
    "EFFP without cost": effp_without_cost,
}
