"""Tries a session's end before its beginning: trace, cut to the targets and verify a copy with random values."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from effp_fx import importance, lowering, models, tracing
from effp_fx.errors import CaptureError, SessionError
from effp_fx.groups import Analysis, Keep
from effp_fx.inputs import Example
from effp_fx.module_copy import copied
from effp_fx.subject import examples_for


def rehearse(
    network: nn.Module,
    example_inputs: Any,
    targets: lowering.Targets,
    ignore: tracing.Ignore,
    groups: str | Path | None,
    progress: tracing.Progress,
) -> tracing.Tracing:
    """The analysis of a network, refined until a copy of it was lowered to the targets exactly.

    The copy has random values: the zeros and ones of a fresh network would hide mistakes, and a resumed run must come
    to the same channels whatever its weights are by then.

    Raises whatever tracing, the search for a plan and the verification raise, before a step of training is spent, and
    SessionError where there is nothing to prune.
    """
    example, train_example = examples_for(network, example_inputs)

    def traced(twin: nn.Module) -> tracing.Tracing:
        return tracing.trace(
            twin, example, train_example=train_example, ignore=ignore, groups=groups, progress=progress
        )

    try:
        found = traced(models.randomise(copied(network), example=_once(example)))
    except CaptureError:  # a network that does not run on random statistics
        found = traced(copied(network))

    def mask(analysis: Analysis) -> Keep:
        return lowering.choose(analysis, targets, importance.score(analysis, found.model, "gamma"))

    lowering.plan_and_verify(found, mask, progress)
    if not found.analysis.channels:
        raise SessionError(
            "nothing of this model can be pruned",
            where=type(network).__name__,
            seen="no channel that may go" + (f": {found.analysis.frozen[0]}" if found.analysis.frozen else ""),
            mend="effp_fx.trace(model) shows what stays, and why",
        )
    return found


def _once(example: Example) -> Example:
    """The example for a run of its own: a model may write into its inputs."""
    return copy.deepcopy(example)
