"""Sizes that modules hold: which numbers may stand for one, and the copies on which that is tried."""

import numpy as np
import pytest
import torch
from torch import nn

from effp_fx import binding, tracing, trial
from effp_fx.inputs import Example
from effp_fx.plan import from_keep
from effp_fx.size_rules import _always_whole

HEADS, WIDTH = 4, 32
OLD = HEADS * WIDTH


@pytest.mark.parametrize(
    ("value", "channels", "whole"),
    [
        pytest.param(HEADS, np.repeat(np.arange(HEADS), WIDTH), True, id="heads that go as wholes"),
        pytest.param(WIDTH, np.tile(np.arange(WIDTH), HEADS), True, id="heads that all lose the same"),
        pytest.param(HEADS, np.arange(OLD), False, id="a number that divides by chance"),
        pytest.param(HEADS, np.tile(np.arange(WIDTH), HEADS), False, id="the number of heads, where they get thinner"),
        pytest.param(HEADS, np.repeat([0, 1, 2, -1], WIDTH), True, id="one head that stays"),
        pytest.param(HEADS, np.r_[np.repeat([0, 1], WIDTH), np.full(10, -1)], False, id="a part of a head that stays"),
    ],
)
def test_a_number_stands_for_a_size_only_where_every_plan_leaves_it_whole(
    value: int, channels: np.ndarray, whole: bool
) -> None:
    assert _always_whole(value, OLD, channels) is whole


def test_copies_for_trials_share_parameters_and_nothing_else() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    found = tracing.trace(model, Example((torch.rand(1, 3, 8, 8),)))
    keep = trial.trial_keep(found.analysis)
    slices, plan = binding.Slices(), from_keep(found.analysis, keep, {}, summary={})
    one, two = (binding.sliced_copy(model, plan, slices) for _ in range(2))
    alone = binding.sliced_copy(model, plan)
    for name, value in one.named_parameters():
        assert value is two.get_parameter(name) and value is not model.get_parameter(name)
        assert torch.equal(value, alone.get_parameter(name)) and value is not alone.get_parameter(name)
    assert all(value is not two.get_buffer(name) for name, value in one.named_buffers())
    other = from_keep(found.analysis, found.analysis.keep_all(), {}, summary={})
    assert binding.sliced_copy(model, other, slices).get_parameter("0.weight").shape == (8, 3, 3, 3)
