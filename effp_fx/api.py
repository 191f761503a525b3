"""The public calls: trace, prune, verify; wiring only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from torch import fx, nn

from effp_fx import binding, budget, tracing
from effp_fx import cost as costs
from effp_fx.capture import FAILED_ON_INPUTS
from effp_fx.errors import CaptureError, SessionError, TargetError
from effp_fx.groups import Analysis, ChannelGroup, Frozen, Keep
from effp_fx.importance import Importance, score
from effp_fx.lowering import COSTS, Lowered, Targets, choose, plan_and_verify
from effp_fx.plan import ATTRIBUTE, Plan
from effp_fx.recalibrate import recalibrate, take_statistics
from effp_fx.report import trace_text
from effp_fx.subject import examples_for, network_of, rewrapped
from effp_fx.tracing import Progress
from effp_fx.train.fit import Fit, fitted, replaced
from effp_fx.verify import Verification
from effp_fx.verify import verify as compare


def quiet(_line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Trace:
    """What the compiler found in a model. `print(trace)` shows it as a table."""

    model_name: str
    tracing: tracing.Tracing
    flops: float
    """Of the dense network in eval mode, 2 a multiply-accumulate, as torch.utils.flop_counter counts."""
    params: float
    prunable_flops_share: float
    """What would go if every group were cut to the least that must stay."""

    @property
    def analysis(self) -> Analysis:
        """Channels, groups, costs."""
        return self.tracing.analysis

    @property
    def graph_module(self) -> fx.GraphModule:
        """The captured graph in eval mode; it runs on the tensors of the example."""
        return self.analysis.graphs[0].capture.graph_module

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Channels that stand or fall together."""
        return self.analysis.groups

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """Output channels that stay, and why."""
        return self.analysis.frozen

    @property
    def group_graph(self) -> nx.DiGraph:
        """Which group feeds which."""
        return self.analysis.group_graph

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        return self.analysis.notes

    @property
    def seconds(self) -> dict[str, float]:
        """Time of capture, analysis and trials."""
        return self.tracing.seconds

    def __str__(self) -> str:
        return trace_text(self)


@dataclass(frozen=True)
class PruneResult:
    """A compact model and the evidence for it."""

    model: nn.Module
    plan: Plan
    trace: Trace
    keep: Keep
    flops_before: float
    flops_after: float
    params_before: float
    params_after: float
    verification: Verification
    one_channel_flops: float
    """The largest cost of one more channel (or block, with `round_to`): how far below a target one may land."""
    seconds: dict[str, float] = field(default_factory=dict)


def trace(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    ignore: tracing.Ignore = (),
    groups: str | Path | None = None,
    progress: Progress = quiet,
) -> Trace:
    """Find which channels of a model stand or fall together, and what they cost. The model is left as it was.

    Args:
        model: any module that runs; a family that effp_fx knows needs no example inputs.
        example_inputs: what `model(...)` takes: a tensor, a tuple of arguments, a dict of keywords.
        ignore: modules, their names, or globs over names, whose own channels stay.
        groups: a file that `effp-fx trace MODEL --emit FILE` wrote, as the user edited it.
        progress: called with a line before each long step.

    Raises:
        CaptureError, InputError, NameNotFoundError, GroupFileError.
    """
    network, _ = network_of(model)
    example, train_example = examples_for(network, example_inputs)
    try:
        found = tracing.trace(
            network, example, train_example=train_example, ignore=ignore, groups=groups, progress=progress
        )
    except CaptureError as error:
        if example_inputs is None and error.what.endswith(FAILED_ON_INPUTS):
            error.expected = "what model(...) takes: none was given, so these were inferred"
            error.mend = "example_inputs=torch.rand(1, 3, 224, 224)   # or a tuple of inputs, or a dict of keywords"
        raise
    return _summed(network, found)


def _summed(network: nn.Module, found: tracing.Tracing) -> Trace:
    flops, params = costs.flops(found.analysis), costs.params(found.analysis)
    least = np.zeros(found.analysis.channels, dtype=np.bool_)
    for group in found.analysis.groups:
        least[group.start : group.start + max(group.min_kept, 1)] = True
    share = 1 - float(flops(least)) / flops.dense if flops.dense else 0.0
    return Trace(type(network).__name__, found, flops.dense, params.dense, share)


def prune(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    importance: str | Importance | Any = None,
    round_to: int = 1,
    cost: str | None = None,
    ignore: tracing.Ignore = (),
    groups: str | Path | None = None,
    calibration: Iterable[Any] | None = None,
    fit: Fit | Iterable[Any] | None = None,
    epochs: int | None = None,
    inplace: bool = False,
    progress: Progress = quiet,
) -> nn.Module:
    """Return a compact model of the same class that computes what the masked one does, with the targets met from above.

    Without `fit` no data is used but for `calibration`: the accuracy that the cut costs has to be won back by training.
    With `fit` the model is trained and pruned in one session (`effp_fx.Session`):

        def fit(model, session_factory):      # the script as it was, with one line more
            optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
            session_factory(optimizer, total_steps=epochs * len(loader))
            ...                               # the loop

        small = effp_fx.prune(model, target_flops=0.5, fit=fit)

    Args:
        model: the dense model; untouched unless `inplace`.
        example_inputs: what `model(...)` takes; None: the family's own, or inferred.
        target_flops: what is kept: up to 1 a share, above 1 a count (2 FLOPs a multiply-accumulate). 0.5 if neither
            target is given.
        target_params: the same for parameters.
        importance: `"gamma"`, `"l1"`, `"l2"`, `"random"`, a function, or any `torch_pruning` importance object. None:
            `"gamma"`, and with `fit` what a session ranks by.
        round_to: channel counts become multiples of this, where a group is large enough.
        cost: what importance is divided by, a name of `cost.COSTS`: `"memory"` (bytes that layers write), or
            `"latency"` once `cost.latency` is registered under it. None: what there is a target for.
        ignore: modules, names or globs whose own channels stay.
        groups: an edited groups file.
        calibration: batches on which the batch norms are re-estimated after the cut.
        fit: `fit(model, session_factory)` trains the model it is given, a copy; `session_factory(optimizer,
            total_steps, **options)` makes its session, once. It may return a moving average, which is compacted then.
            Or a loader of (images, targets) as torchvision's detectors take them: our own loop trains on it.
        epochs: passes over that loader.
        inplace: change `model` itself.
        progress: called with a line before each long step.

    Raises:
        SessionError: `fit` made no session, or took too few steps.
        TargetError, UnreachableTargetError: a target makes no sense, or frozen channels stand in its way.
        VerificationError: masked and compact model differ; nothing is returned, nothing is changed.
        CaptureError, InputError, NameNotFoundError, GroupFileError.
    """
    if epochs is not None and fit is None:
        raise SessionError("epochs are for a loader", seen="no fit", mend="prune(model, fit=loader, epochs=30)")
    if fit is not None:
        asked: dict[str, Any] = {"target_flops": target_flops, "target_params": target_params, "round_to": round_to}
        asked |= {"cost": cost, "ignore": ignore, "groups": groups, "progress": progress}
        if importance is not None:
            asked["importance"] = importance
        small = fitted(model, fit, epochs, example_inputs=example_inputs, **asked)
        if calibration is not None:
            recalibrate(small, calibration)
        return replaced(model, small) if inplace else small
    return prune_reported(
        model,
        example_inputs,
        target_flops=target_flops,
        target_params=target_params,
        importance="gamma" if importance is None else importance,
        round_to=round_to,
        cost=cost,
        ignore=ignore,
        groups=groups,
        calibration=calibration,
        inplace=inplace,
        progress=progress,
    ).model


def prune_reported(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    importance: str | Importance | Any = "gamma",
    round_to: int = 1,
    cost: str | None = None,
    ignore: tracing.Ignore = (),
    groups: str | Path | None = None,
    calibration: Iterable[Any] | None = None,
    inplace: bool = False,
    progress: Progress = quiet,
) -> PruneResult:
    """`prune`, with the plan, the costs and the verification beside the model."""
    targets = {"flops": target_flops, "params": target_params}
    if target_flops is None and target_params is None:
        targets["flops"] = 0.5
    _check_early(targets, round_to)
    found = trace(model, example_inputs, ignore=ignore, groups=groups, progress=progress)
    network, path = network_of(model)
    asked = Targets(targets["flops"], targets["params"], round_to, cost)
    if cost is not None:
        costs.build_cost(cost, found.tracing.analysis)  # a name that is not known shows before anything is cut

    def select(analysis: Analysis) -> Keep:
        return choose(analysis, asked, score(analysis, network, importance))

    lowered = plan_and_verify(found.tracing, select, progress)
    result = _result(lowered, _summed(network, found.tracing), round_to)
    if calibration is not None:
        progress("re-estimate batch norms")
        recalibrate(result.model, calibration, like=found.tracing.example)
    if inplace:  # last of all: whatever fails before this line, the user's model is as it was
        binding.apply(network, result.plan, inplace=True)
        take_statistics(network, result.model)
        return replace(result, model=model)
    return replace(result, model=rewrapped(model, path, result.model, inplace=False))


def _result(lowered: Lowered, found: Trace, round_to: int) -> PruneResult:
    flops, params = (build(found.analysis) for build in COSTS.values())
    return PruneResult(
        lowered.model,
        lowered.plan,
        found,
        lowered.keep,
        flops.dense,
        float(flops(lowered.keep)),
        params.dense,
        float(params(lowered.keep)),
        lowered.verification,
        float(flops.marginal(lowered.keep).max(initial=0.0)) * round_to,
        found.seconds | lowered.seconds,
    )


def _check_early(targets: Mapping[str, float | None], round_to: int) -> None:
    """Refuse what cannot be right before anything slow is done."""
    for name, value in targets.items():
        if value is not None:
            try:
                budget.resolve_target(value, float("inf"), f"target_{name}")
            except TargetError as error:
                error.expected = "a part in (0, 1], such as 0.5, or a count up to the dense cost"
                raise
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise TargetError(
            "round_to must be a whole number of channels", seen=repr(round_to), expected="1, 8, 16, 32, ..."
        )


def verify(masked: nn.Module, compact: nn.Module, example_inputs: Any = None) -> Verification:
    """Compare two models on the same inputs: `.equal`, `.max_relative_error`, `.checks`. Both are left as they were."""
    network, _ = network_of(masked)
    example, train_example = examples_for(network, example_inputs)
    return compare(network, network_of(compact)[0], example, train_example=train_example)


__all__ = ["ATTRIBUTE", "PruneResult", "Trace", "prune", "prune_reported", "trace", "verify"]
