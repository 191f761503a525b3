"""From an analysis to a compact model that was compared with its masked twin: choose, lower, verify, learn, again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from effp_fx import binding, budget, cost, diagnose, importance, masking
from effp_fx.cost import Cost
from effp_fx.errors import VerificationError
from effp_fx.groups import Analysis, Keep
from effp_fx.plan import Plan, from_keep
from effp_fx.tracing import Progress, Tracing
from effp_fx.verify import Verification, verify

_ATTEMPTS = 8
"""Plans tried before giving up: each that does not verify freezes what stood in its way."""
COSTS: Mapping[str, Callable[[Analysis], Cost]] = {"flops": cost.flops, "params": cost.params}
"""What a target can be set for, by the name that the target has."""


@dataclass(frozen=True)
class Targets:
    """What is asked of a plan: up to 1 the part that is kept, above 1 a count; None: no target."""

    flops: float | None = None
    params: float | None = None
    round_to: int = 1
    cost: str | None = None
    """Of `cost.COSTS`: what importance is divided by; None: what there is a target for."""

    def absolute(self, costs: Mapping[str, Cost]) -> dict[str, float]:
        """The targets that are set, as counts. Raises TargetError for what makes no sense."""
        asked = {"flops": self.flops, "params": self.params}
        return {
            name: budget.resolve_target(value, costs[name].dense, f"target_{name}")
            for name, value in asked.items()
            if value is not None
        }


@dataclass(frozen=True)
class Lowered:
    """A compact model and the evidence for it."""

    model: nn.Module
    plan: Plan
    keep: Keep
    verification: Verification
    seconds: dict[str, float] = field(default_factory=dict)


def choose(
    analysis: Analysis,
    targets: Targets,
    scores: importance.Floats,
    *,
    closely: bool = True,
    worth: importance.Floats | None = None,
) -> Keep:
    """The channels to keep (K) under all targets, by scores (K). Raises TargetError, UnreachableTargetError.

    `closely`: whether targets that the scores do not let meet within a tenth are refused. `worth` (G): of each group as
    a whole, as in `budget.search`; None: what it costs.
    """
    costs = {name: build(analysis) for name, build in COSTS.items()}
    wanted = targets.absolute(costs)
    chosen = {name: costs[name] for name in wanted}
    rank_by = None if targets.cost is None else cost.build_cost(targets.cost, analysis)
    return budget.search(
        analysis, scores, chosen, wanted, round_to=targets.round_to, closely=closely, rank_by=rank_by, worth=worth
    )


def lower(found: Tracing, network: nn.Module, keep: Keep, progress: Progress) -> Lowered:
    """Cut the network to `keep` and compare the result with the masked one; `.verification` says how it came out.

    `network` is the traced model, or one of the same structure: a moving average of it, for one.
    """
    begin = time.perf_counter()
    progress("lower")
    plan = from_keep(found.analysis, keep, found.attributes(keep))
    small = binding.apply(network, plan)
    lowered = time.perf_counter()
    masked = masking.masked_copy(network, found.analysis, keep)
    train = found.train_example
    checked = verify(masked, small, found.example, train_example=train, modes=found.modes, progress=progress)
    return Lowered(small, plan, keep, checked, {"lowering": lowered - begin, "verify": time.perf_counter() - lowered})


def plan_and_verify(found: Tracing, select: Callable[[Analysis], Keep], progress: Progress) -> Lowered:
    """Lower the traced model to what `select` keeps. Where that does not verify, find out why, freeze it, try again.

    Raises VerificationError where nothing explains the difference.
    """
    last: Lowered | None = None
    for attempt in range(_ATTEMPTS):
        begin = time.perf_counter()
        progress("choose channels")
        keep = select(found.analysis)
        # Once a plan has failed, the next one is tried for its sizes first, which costs a part of a verification.
        while attempt and diagnose.refit(found, keep):
            keep = select(found.analysis)
        planned = time.perf_counter() - begin
        last = lower(found, found.model, keep, progress)
        last.seconds["plan"] = planned
        if last.verification.equal:
            return last
        progress("the compact model differs: look for the cause")
        if not diagnose.learn(found, masking.masked_copy(found.model, found.analysis, keep), keep):
            break
    raise differs(last.verification if last else None)


def differs(seen: Any) -> VerificationError:
    """The error for a compact model that is not handed out."""
    return VerificationError(
        "masked and compact model differ, so no model is returned",
        seen=str(seen),
        mend="name the part that resists in ignore=, and report the model",
    )
