"""The schedule: when updates come, what they give back, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from effp_fx.errors import SessionError
from effp_fx.schedule import Schedule, fitting, linear


def test_updates_are_spread_evenly_and_give_back_less_each_time() -> None:
    schedule = Schedule(100, start=0.1, end=0.5, updates=5, regrow=0.4)
    assert schedule.update_steps == (10, 20, 30, 40, 50)
    assert schedule.freeze_step == 50
    shares = [schedule.regrow_share(step) for step in schedule.update_steps]
    assert shares == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert [schedule.is_update(step) for step in (9, 10, 11)] == [False, True, False]
    assert (linear(0.0), linear(0.25), linear(1.0)) == (1.0, 0.75, 0.0)


@given(total=some.integers(3, 400), start=some.floats(0, 0.4), length=some.floats(0.35, 0.6))
def test_where_nobody_said_how_many_there_are_twenty_or_as_many_as_fit(total: int, start: float, length: float) -> None:
    count = fitting(total, start, start + length)
    assert 1 <= count <= 20 and len(Schedule(total, start, start + length, count).update_steps) == count
    if count < 20:
        with pytest.raises(SessionError, match="too small"):
            Schedule(total, start, start + length, count + 1)


def test_a_single_update_is_the_last_one() -> None:
    schedule = Schedule(10, start=0.1, end=0.6, updates=1, regrow=0.5)
    assert schedule.update_steps == (6,)
    assert schedule.regrow_share(6) == 0.0


@given(
    total=some.integers(1, 3000),
    start=some.floats(0, 0.99),
    end=some.floats(0.01, 1),
    updates=some.integers(1, 40),
    regrow=some.floats(0, 1),
)
def test_whatever_is_accepted_keeps_its_promises(
    total: int, start: float, end: float, updates: int, regrow: float
) -> None:
    try:
        schedule = Schedule(total, start, end, updates, regrow)
    except SessionError as error:
        if "at least" in str(error):  # what the message asks for is enough
            least = int(str(error).split("at least ")[1].split()[0])
            assert least > total
            assert len(Schedule(least, start, end, updates, regrow).update_steps) == updates
        return
    steps = schedule.update_steps
    assert len(set(steps)) == updates and list(steps) == sorted(steps)
    assert steps[0] >= 1 and steps[-1] == int(end * total) <= total
    shares = [schedule.regrow_share(step) for step in steps]
    assert shares == sorted(shares, reverse=True) and shares[-1] == 0 and all(0 <= share <= regrow for share in shares)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps must be the number of optimizer steps"),
        ({"total_steps": 10.0}, "total_steps must be the number of optimizer steps"),
        ({"total_steps": True}, "total_steps must be the number of optimizer steps"),
        ({"start": 0.6, "end": 0.6}, "start and end must be parts of the session"),
        ({"end": 1.5}, "start and end must be parts of the session"),
        ({"start": float("nan")}, "start and end must be parts of the session"),
        ({"updates": 0}, "updates must be a whole number above 0"),
        ({"updates": 2.5}, "updates must be a whole number above 0"),
        ({"regrow": -0.1}, "regrow must be a part between 0 and 1"),
        ({"regrow": 1.1}, "regrow must be a part between 0 and 1"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SessionError, match=message):
        Schedule(**{"total_steps": 1000} | options)


def test_too_few_steps_name_the_least() -> None:
    with pytest.raises(SessionError) as caught:
        Schedule(20, start=0.1, end=0.6, updates=20)
    assert "too small for 20 updates from 10% to 60% of it" in str(caught.value)
    assert "seen: 20 steps" in str(caught.value)
    assert "expected: at least 37" in str(caught.value)
    Schedule(37, start=0.1, end=0.6, updates=20)


def test_the_least_is_found_at_once_however_narrow_the_span() -> None:
    with pytest.raises(SessionError, match="at least"):
        Schedule(20, start=0.3, end=0.3 + 1e-9, updates=20)
