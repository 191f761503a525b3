"""The union-find under the analysis: what is united, what is frozen, and why."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effp_fx.channel_ids import ChannelIds, Reason


def _ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_new_ids_are_alone_and_start_at_one() -> None:
    ids = ChannelIds()
    first, second = ids.new("a", 0, 3), ids.new("b", 1, 2)
    assert (first.start, first.stop, second.start, second.stop) == (1, 4, 4, 6)
    assert len(ids) == 6
    assert ids.roots().tolist() == [0, 1, 2, 3, 4, 5]


def test_a_class_is_named_by_its_smallest_id() -> None:
    ids = ChannelIds()
    ids.new("a", 0, 6)
    ids.unite(_ids(6, 5), _ids(5, 2))
    assert ids.roots().tolist() == [0, 1, 2, 3, 4, 2, 2]
    ids.unite(_ids(1), _ids(6))
    assert ids.roots().tolist() == [0, 1, 1, 3, 4, 1, 1]


def test_ids_made_after_a_union_are_alone() -> None:
    ids = ChannelIds()
    ids.new("a", 0, 2)
    ids.unite(_ids(1), _ids(2))
    assert ids.roots().tolist() == [0, 1, 1]
    ids.new("b", 0, 1)
    assert ids.roots().tolist() == [0, 1, 1, 3]


def test_lists_of_unequal_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 ids cannot be united with 1"):
        ChannelIds().unite(_ids(1, 2), _ids(3))


def test_a_frozen_id_freezes_its_class_also_what_joins_later() -> None:
    ids = ChannelIds()
    ids.new("a", 0, 4)
    ids.freeze(_ids(0, 3), Reason("sorted"))
    assert ids.frozen_mask().tolist() == [True, False, False, True, False]
    ids.unite(_ids(3), _ids(1))
    assert ids.frozen_mask().tolist() == [True, True, False, True, False]


def test_the_first_reason_is_kept() -> None:
    ids = ChannelIds()
    ids.new("a", 0, 2)
    ids.freeze(_ids(2), Reason("first"))
    ids.freeze(_ids(2, 1), Reason("second"))
    assert {root: reason.text for root, reason in ids.frozen_roots().items()} == {2: "first", 1: "second"}


def test_nothing_is_frozen_by_no_channel() -> None:
    ids = ChannelIds()
    ids.new("a", 0, 2)
    ids.freeze(_ids(0, 0), Reason("nothing"))
    assert ids.frozen_roots() == {}


def test_ids_of_no_weight_are_told_apart() -> None:
    ids = ChannelIds()
    ids.new("a", 0, 2)
    ids.new("", 0, 2)
    ids.new("b", 0, 1)
    assert ids.named(_ids(0, 1, 2, 3, 4, 5)).tolist() == [False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Reason("sorted"), "sorted"),
        (Reason("sorted", "aten.sort", "head", "net.py:3"), "sorted [aten.sort, head, net.py:3]"),
        (Reason("sorted", module="head"), "sorted [head]"),
    ],
)
def test_a_reason_reads_as_a_line(reason: Reason, text: str) -> None:
    assert str(reason) == text


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=40), st.integers(1, 8))
def test_roots_are_those_of_a_plain_union_find(pairs: list[tuple[int, int]], batch: int) -> None:
    ids = ChannelIds()
    ids.new("a", 0, 30)
    parent = list(range(31))

    def find(one: int) -> int:
        while parent[one] != one:
            one = parent[one]
        return one

    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        ids.unite(np.array([one for one, _ in part]), np.array([two for _, two in part]))
        for one, two in part:
            left, right = find(one), find(two)
            parent[max(left, right)] = min(left, right)
        assert ids.roots().tolist() == [find(one) for one in range(31)]
