"""Which numbers of a module may stand for a size that is cut: only those that every plan leaves whole."""

import numpy as np
import pytest

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
