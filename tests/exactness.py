"""Cuts a network by random masks and says how far the masked dense one and the compact one are apart, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effp_fx import binding, masking, tracing, trial
from effp_fx.capture import tensors_of
from effp_fx.groups import Keep
from effp_fx.inputs import Example, as_example, to_dtype
from effp_fx.models.randomise import randomise
from effp_fx.passes.lower import Lower
from effp_fx.passes.mask import Mask
from effp_fx.plan import from_keep

EXACT = 1e-9
"""Relative. A right rule is off by 1e-15 in float64, a wrong one by 1e-4 or more."""


@dataclass(frozen=True)
class Exactness:
    """What a network lost and how exactly."""

    tracing: tracing.Tracing
    error: float
    """The largest relative difference of masked and compact, over all masks and outputs; infinite: other shapes."""
    change: float
    """Smallest relative change that any of the masks made to the output: a mask that changes nothing proves nothing."""

    @property
    def channels(self) -> int:
        """How many channels may go."""
        return self.tracing.analysis.channels

    @property
    def groups(self) -> int:
        """How many groups they form."""
        return len(self.tracing.analysis.groups)

    def reasons(self) -> str:
        """Why the others stay, a line each."""
        return "\n".join(str(frozen) for frozen in self.tracing.analysis.frozen)


def prepared(model: nn.Module) -> nn.Module:
    """The model in eval mode, every scale, shift and statistic such that it matters; its own parameters random too."""
    randomise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "." not in name and parameter.is_floating_point():
                parameter.copy_(torch.empty_like(parameter).uniform_(0.5, 1.5))
    return model.eval()


def masks(analysis: tracing.Analysis) -> Iterator[Keep]:
    """Two random ones, and the one that leaves a single channel in every group."""
    yield trial.trial_keep(analysis, 3)
    yield trial.trial_keep(analysis, 8)
    keep = np.zeros(analysis.channels, dtype=np.bool_)
    for index, group in enumerate(analysis.groups):
        keep[group.start + (index * 7 + 2) % group.channels] = True
    yield keep


def judge(model: nn.Module, inputs: Any) -> Exactness:
    """Trace the model, cut copies of it and of its graph, run them beside their masked twins."""
    example = as_example(inputs)
    traced = tracing.trace(model, example)
    error, change = 0.0, float("inf")
    for keep in masks(traced.analysis):
        if not traced.analysis.channels:
            continue
        now, moved = compared(traced, model, example, keep)
        error = max(error, now, graph_distance(traced, example, keep))
        change = min(change, moved)
    return Exactness(traced, error, change)


def compared(traced: tracing.Tracing, model: nn.Module, example: Example, keep: Keep) -> tuple[float, float]:
    """(difference between masked and compact, difference between dense and masked), relative to the largest value."""
    dense = copy.deepcopy(model).double()
    plan = from_keep(traced.analysis, keep, traced.attributes(keep), summary={})
    small, twin = binding.apply(dense, plan), masking.masked_copy(dense, traced.analysis, keep)
    try:
        got = outputs(small, example)
    except RuntimeError:
        return float("inf"), float("inf")
    expected = outputs(twin, example)
    return distance(got, expected), distance(outputs(dense, example), expected)


def graph_distance(traced: tracing.Tracing, example: Example, keep: Keep) -> float:
    """The difference between the masked graph and the compact graph, the other two things that a plan gives."""
    part = traced.analysis.graphs[0]
    graphs = [step(traced.analysis, part).graph_module for step in (Mask(keep), Lower(keep))]
    for dtype, scale in ((torch.float64, 1.0), (torch.float32, 1e-5)):
        tensors = [tensor for tensor in tensors_of(to_dtype(example, dtype).args)[0]]
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                twins = [copy.deepcopy(graph).to(dtype)(*(tensor.clone() for tensor in tensors)) for graph in graphs]
        except RuntimeError:  # a type that the model writes into its calls: then float32, whose errors are larger
            continue
        return scale * distance(list(twins[1]), list(twins[0]))
    return float("inf")


def outputs(model: nn.Module, example: Example) -> list[Tensor]:
    """The tensors that the model returns, inputs in float64, the same random numbers each time."""
    example = to_dtype(example, torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        found, _ = tensors_of(model(*copy.deepcopy(example).args, **copy.deepcopy(example).kwargs))
    return found


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    """The largest difference relative to the largest value, over pairs of tensors."""
    worst = 0.0
    for one, two in zip(left, right, strict=True):
        if one.shape != two.shape or not bool(torch.isfinite(one).all() & torch.isfinite(two).all()):
            return float("inf")
        one, two = one.double(), two.double()
        worst = max(worst, float((one - two).abs().max() / (one.abs().max() + 1e-30)))
    return worst


def assert_exact(report: Exactness) -> None:
    """Masked and compact are the same, and the masks showed."""
    assert report.error < EXACT, f"masked and compact differ by {report.error:.2e}"
    assert report.change > 1e-6, f"a mask changed the output by {report.change:.1e} only, which proves nothing"


class Net(nn.Module):
    """A network from its parts and a forward function that gets the network first."""

    def __init__(self, body: Any, **parts: Any) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.body(self, *inputs)


@dataclass(frozen=True)
class Row:
    """One small network: how many of its channels may go, and why others may not."""

    channels: int
    build: Any
    shape: tuple[int, ...] = (2, 3, 8, 8)
    stays: str = ""
    """A part of the reason that must be given; empty: none is asked for."""
    inputs: Any = None
    """Makes the inputs, where one random tensor of `shape` is not what is wanted."""

    def judge(self) -> Exactness:
        """Build, prepare and judge the network."""
        torch.manual_seed(0)
        model = prepared(self.build())
        return judge(model, self.inputs() if self.inputs else torch.randn(self.shape))

    def hold(self) -> None:
        """Assert what the row says: exact, as many channels as it names, the reason it names."""
        report = self.judge()
        if report.channels:
            assert_exact(report)
        assert report.channels == self.channels, f"{report.channels} channels, not {self.channels}\n{report.reasons()}"
        if self.stays:
            assert self.stays in report.reasons(), report.reasons()


def cases(rows: Mapping[str, Row], coverage: Mapping[str, str]) -> list[Any]:
    """The names of the rows as parameters of a test; those in `coverage` must still fail, for the reason given."""
    unknown = {*coverage} - {*rows}
    assert not unknown, f"no rows of these names: {unknown}"
    return [
        pytest.param(name, marks=[pytest.mark.xfail(reason=coverage[name], strict=True)] if name in coverage else [])
        for name in rows
    ]


def weight(*shape: int) -> nn.Parameter:
    """A random parameter."""
    return nn.Parameter(torch.randn(shape) * 0.3)
