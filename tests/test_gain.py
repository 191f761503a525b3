"""Tests of how far the pruning loss drives gammas: the measured gain of optimizers, and the drift that it leads to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import effp_fx
from effp_fx.session.gain import Gain
from effp_fx.session.options import Options
from tests.session_run import net

LASTING, NOISE = 0.1, 1.0


def trained(make: Callable[[list[nn.Parameter]], optim.Optimizer], steps: int, factor: float = 1.0) -> Gain:
    """Gradients that are mostly noise on weights that are far from zero."""
    generator = torch.Generator().manual_seed(0)
    weights = {"gamma": nn.Parameter(torch.full((500,), 100.0)), "filters": nn.Parameter(torch.full((300, 2, 3), 50.0))}
    optimizer, gain = make(list(weights.values())), Gain(weights)
    for _ in range(steps):
        for value in weights.values():
            value.grad = factor * (LASTING + NOISE * torch.randn(value.shape, generator=generator))
        gain.observe(None if factor == 1 else torch.tensor(factor))
        if factor == 1:
            optimizer.step()
    return gain


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda p: optim.SGD(p, 0.01), 0.01),
        (lambda p: optim.SGD(p, 0.01, momentum=0.9), 0.1),
        (lambda p: optim.SGD(p, 0.01, momentum=0.9, nesterov=True), 0.1),
        (lambda p: optim.Adam(p, 0.01), 0.01),  # the root of the mean squared gradient is about 1
        (lambda p: optim.RMSprop(p, 0.01), 0.01),
    ],
    ids=["SGD", "momentum", "Nesterov", "Adam", "RMSprop"],
)
def test_the_gain_is_the_optimizer_s(make: Any, wanted: float) -> None:
    assert trained(make, 400).value == pytest.approx(wanted, rel=0.2)


def test_a_scale_is_taken_out_and_a_state_goes_on() -> None:
    gain = trained(lambda p: optim.SGD(p, 0.01), 30)
    other = trained(lambda p: optim.SGD(p, 0.01), 1)
    other.load_state_dict(gain.state_dict())
    assert other.value == gain.value > 0
    one, scaled = trained(lambda p: optim.SGD(p, 0.01), 1), trained(lambda p: optim.SGD(p, 0.01), 1, 1024.0)
    assert torch.allclose(one.state_dict()["memory"][1], scaled.state_dict()["memory"][1], rtol=1e-5)


@pytest.mark.parametrize("rate", [0.02, pytest.param(0.005, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("make", "shrink"),
    [
        (lambda p, rate: optim.SGD(p, rate), 0.0),
        (lambda p, rate: optim.SGD(p, rate), Options.shrink),
        (lambda p, rate: optim.SGD(p, rate, momentum=0.9), 0.0),
        (lambda p, rate: optim.SGD(p, rate, momentum=0.9), Options.shrink),
        (lambda p, rate: optim.Adam(p, rate / 5), 0.0),  # which divides by the penalty's gradient as well
    ],
    ids=["SGD", "SGD, shrinking", "momentum", "momentum, shrinking", "Adam"],
)
def test_gammas_lose_the_part_that_was_asked_for(make: Any, shrink: float, rate: float) -> None:
    """With a network whose loss only shakes the gammas, the pruning loss alone decides how far they drift.

    The group penalty moves them too, and what it does is not laid to the pruning loss.
    """
    sizes = {}
    options = {"target_flops": 0.5, "start": 0.99, "end": 1.0, "updates": 1, "shrink": shrink}
    for drift in (0.0, 0.2):
        model = net()
        optimizer = make(model.parameters(), rate)
        session = effp_fx.Session(model, optimizer, 400, **options, drift=drift)
        generator = torch.Generator().manual_seed(0)
        for _ in range(399):
            shaken: Tensor = sum(
                (value * torch.randn(value.shape, generator=generator)).sum() for value in model.parameters()
            )
            optimizer.zero_grad()
            (0.01 * shaken).backward()
            optimizer.step()
        gammas = [session._tensors[name] for group in session.analysis.groups for name in group.gammas]
        sizes[drift] = float(torch.cat([value.detach().abs() for value in gammas]).mean())
    assert 1 - sizes[0.2] / sizes[0.0] == pytest.approx(0.2, rel=0.35)
