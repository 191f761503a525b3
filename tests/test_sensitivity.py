"""Tests that the scores of `taylor` are the slopes of the loss along masks that are really there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effp_fx.groups import Analysis
from effp_fx.session.sensitivity import Sensitivity
from tests.session_run import attached, batch, held, net, sgd, train


class Plain(nn.Module):
    """No norm at all: filters and biases are what makes a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def backward(model: nn.Module, scale: float = 1.0) -> None:
    images, labels = batch(3)
    model.zero_grad()
    (scale * nn.functional.cross_entropy(model(images), labels)).backward()


def slopes_of_masks(model: nn.Module, analysis: Analysis) -> np.ndarray:
    """What autograd says of a mask of ones that multiplies the outputs of the layers that make the channels (K)."""
    mask = torch.ones(analysis.channels, requires_grad=True)
    makers = {name for group in analysis.groups for name in group.gammas}
    plain = [group for group in analysis.groups if not group.gammas]
    makers |= {part.tensor for group in plain for part in group.slices if part.role == "out"}
    handles = []
    for name in {maker.rpartition(".")[0] for maker in makers}:
        channels = torch.from_numpy(analysis.tensors[f"{name}.weight"].dims[0])

        def scaled(_: nn.Module, __: Any, output: Tensor, channels: Tensor = channels) -> Tensor:
            factors = torch.where(channels >= 0, mask[channels], 1.0)
            return output * factors.reshape(1, -1, *[1] * (output.dim() - 2))

        handles.append(model.get_submodule(name).register_forward_hook(scaled))
    backward(model)
    for handle in handles:
        handle.remove()
    assert mask.grad is not None
    return mask.grad.double().numpy()


@pytest.mark.parametrize("build", [lambda: net("chain"), lambda: net("residual"), lambda: net("silu"), Plain])
def test_they_are_the_slopes_of_a_mask(build: Callable[[], nn.Module]) -> None:
    model = build()
    session = attached(model, sgd(model), target_params=None)
    wanted = slopes_of_masks(model, session.analysis)
    found = Sensitivity(session.analysis, dict(model.named_parameters()))
    backward(model)
    found.observe(session.keep, None)
    assert np.abs(wanted).min() > 0
    assert found.scores() == pytest.approx(0.1 * np.abs(wanted), rel=1e-3)  # a hundredth of the square

    once = found.squares.copy()
    backward(model, scale=1024.0)
    found.observe(session.keep, torch.tensor(1024.0))
    assert found.squares == pytest.approx(1.99 * once, rel=1e-5)


def test_what_is_held_keeps_its_score_and_what_is_not_finite_is_passed_over() -> None:
    model = net()
    session = attached(model, sgd(model))
    found = Sensitivity(session.analysis, dict(model.named_parameters()))
    backward(model)
    alive = session.keep
    found.observe(alive, None)
    before = found.squares.copy()
    alive[:4] = False
    weight = next(iter(model.parameters()))
    found._tensors[session.analysis.groups[-1].gammas[0]].grad[0] = torch.nan
    found.observe(alive, None)
    assert np.isfinite(found.squares).all()
    assert (found.squares[:4] == before[:4]).all()
    assert (found.squares != before).sum() >= len(before) - 5
    assert weight.isfinite().all()


def test_they_are_what_a_session_ranks_by() -> None:
    """The channel that the loss would miss most stays, however small its gamma."""
    model = net("silu")
    with torch.no_grad():
        model.body[1].weight[2] = 1e-3
    optimizer = sgd(model)
    session = attached(model, optimizer, alpha=0.0)
    first = session.analysis.groups[0]
    score = session._ranking._sensitivity
    for _ in train(model, optimizer, range(9)):
        score.squares[first.start + 2] = 1e6
    assert held(session) == []
    assert session.keep[first.start + 2]


@pytest.mark.parametrize("importance", ["taylor", "gamma"])
def test_a_group_that_the_loss_would_miss_more_keeps_more_of_its_channels(importance: str) -> None:
    """With the order within the group as it was. Gammas say nothing about a group beside others."""
    kept = []
    for factor in (1.0, 100.0):
        model = net()
        optimizer = sgd(model)
        session = attached(model, optimizer, target_params=None, alpha=0.0, shrink=0.0, importance=importance)
        ranking = session._ranking
        group = session.analysis.groups[1]
        for step in train(model, optimizer, range(session.schedule.freeze_step)):
            if step == session.schedule.update_steps[0] - 2 and ranking._sensitivity is not None:
                ranking._sensitivity.squares[group.start : group.stop] *= factor
        kept.append(int(session.keep[group.start : group.stop].sum()))
    assert (kept[1] > kept[0]) is (importance == "taylor")


def test_what_a_group_is_worth_is_the_sum_of_squared_slopes_of_what_is_alive() -> None:
    model = net()
    session = attached(model, sgd(model))
    assert session._ranking._sensitivity is not None
    session._ranking._sensitivity.squares[:] = np.arange(session.analysis.channels)
    alive = session.keep
    alive[0:2] = False
    worth = session._ranking.worth(alive)
    wanted = [float(sum(n for n in range(g.start, g.stop) if n > 1)) for g in session.analysis.groups]
    assert worth is not None and worth.tolist() == wanted
