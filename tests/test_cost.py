"""Costs are exact products of counts: by hand, against a brute-force sum, in their derivatives, and per layer."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effp_fx.cost import COSTS, Cost, activation_bytes, build_cost, flops, params, register_cost
from effp_fx.errors import NameNotFoundError, RegistrationError
from effp_fx.groups import Term
from tests.hand_made import Sketch, chain, fixed


def brute(terms: list[Term], keep: np.ndarray) -> float:
    """The definition, one term and one entry at a time."""
    total = 0.0
    for term in terms:
        product = term.constant
        for factor in term.factors:
            product *= sum(1.0 if number < 0 else float(keep[number]) for number in factor)
        total += product
    return total


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[Term], np.ndarray]:
    channels = draw(st.integers(1, 12))
    factor = st.lists(st.integers(-1, channels - 1), max_size=8).map(lambda numbers: np.array(numbers, dtype=np.int64))
    term = st.builds(
        Term,
        constant=st.integers(0, 9).map(float),
        factors=st.lists(factor, max_size=3).map(tuple),
        layer=st.sampled_from(["a", "b"]),
        node=st.just(""),
    )
    keep = draw(st.lists(st.booleans(), min_size=channels, max_size=channels))
    return draw(st.lists(term, max_size=5)), np.array(keep)


@given(networks())
def test_a_cost_is_the_sum_of_the_products_of_what_is_left(network: tuple[list[Term], np.ndarray]) -> None:
    terms, keep = network
    cost = Cost(terms, len(keep))
    assert cost(keep) == brute(terms, keep)
    assert cost.dense == brute(terms, np.ones(len(keep)))
    assert sum(cost.per_layer(keep).values()) == cost(keep)
    assert cost(torch.tensor(keep)).item() == cost(keep)


@given(networks(), st.integers(0, 2**32 - 1))
def test_marginals_are_the_derivative_that_autograd_finds(network: tuple[list[Term], np.ndarray], seed: int) -> None:
    terms, keep = network
    cost = Cost(terms, len(keep))
    soft = np.random.default_rng(seed).uniform(size=len(keep))
    for point in (soft, keep.astype(np.float64)):
        tensor = torch.tensor(point, requires_grad=True)
        value = cost(tensor)
        if value.requires_grad:
            value.backward()
        gradient = torch.zeros(len(keep)) if tensor.grad is None else tensor.grad
        np.testing.assert_allclose(cost.marginal(point), gradient.numpy(), rtol=1e-12, atol=1e-12)


def test_the_flops_and_parameters_of_a_small_stack() -> None:
    analysis = chain([4, 6], positions=[25, 9], outputs=5).analysis()
    dense = np.ones(10, dtype=bool)
    assert flops(analysis)(dense) == 2 * 25 * 9 * 3 * 4 + 25 * 4 + 2 * 9 * 9 * 4 * 6 + 9 * 6 + 2 * 6 * 5 + 5
    assert params(analysis)(dense) == 9 * 3 * 4 + 4 + 9 * 4 * 6 + 6 + 6 * 5 + 5
    half = np.array([True, False] * 5)
    assert params(analysis)(half) == 9 * 3 * 2 + 2 + 9 * 2 * 3 + 3 + 3 * 5 + 5
    assert flops(analysis).per_layer(half)["conv1"] == 2 * 9 * 9 * 2 * 3 + 9 * 3
    assert params(analysis).per_layer(half) == {"conv0": 56.0, "conv1": 57.0, "head": 20.0}


def test_parameters_leave_buffers_out_and_count_what_no_channel_runs_through() -> None:
    sketch = Sketch()
    numbers = sketch.group(4)
    sketch.tensor("norm.weight", (4,), {0: numbers})
    sketch.tensor("norm.running_mean", (4,), {0: numbers}, is_parameter=False)
    sketch.tensor("scale", (), {})
    sketch.tensor("table", (7, 3), {})
    cost = params(sketch.analysis())
    assert cost.dense == 4 + 1 + 21
    assert cost(np.array([True, False, False, False])) == 1 + 1 + 21


def test_a_layer_that_feeds_itself_is_quadratic() -> None:
    sketch = Sketch()
    numbers = sketch.group(5)
    sketch.layer("self", numbers, numbers)
    cost = params(sketch.analysis())
    keep = np.array([True, True, True, False, False])
    assert (cost.dense, cost(keep)) == (25, 9)
    assert cost.marginal(keep).tolist() == [6.0] * 5


def test_a_channel_of_several_rows_counts_that_often() -> None:
    sketch = Sketch()
    numbers = sketch.group(2)
    sketch.layer("flat", fixed(10), np.repeat(numbers, 49))
    assert params(sketch.analysis())(np.array([True, False])) == 490


def test_a_network_with_no_channels_and_one_with_no_terms() -> None:
    sketch = Sketch()
    assert flops(sketch.analysis())(np.zeros(0, dtype=bool)) == 0
    sketch.layer("only", fixed(3), fixed(2))
    assert flops(sketch.analysis())(np.zeros(0, dtype=bool)) == 12
    assert activation_bytes(sketch.analysis()).dense == 0
    assert flops(sketch.analysis()).marginal(np.zeros(0, dtype=bool)).shape == (0,)


def test_a_mask_of_another_length_is_refused() -> None:
    cost = flops(chain([4]).analysis())
    with pytest.raises(ValueError, match=r"one entry per channel, shape \(4,\), not \(5,\)"):
        cost(np.ones(5))


def test_costs_go_by_name_and_a_name_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effp_fx.cost.COSTS", dict(COSTS))
    register_cost("two", lambda analysis: Cost([Term(2.0, (), "", "")], analysis.channels))
    analysis = chain([4]).analysis()
    assert build_cost("two", analysis).dense == 2
    with pytest.raises(RegistrationError, match="a cost named 'two' exists already"):
        register_cost("two", flops)
    with pytest.raises(NameNotFoundError, match="no cost is named 'watts'") as caught:
        build_cost("watts", analysis)
    assert "flops" in str(caught.value)


def test_two_thousand_layers_and_a_hundred_thousand_channels_take_milliseconds() -> None:
    cost = flops(chain([50] * 2000).analysis())
    keep = np.random.default_rng(0).uniform(size=100_000) < 0.5
    times = []
    for _ in range(5):
        start = time.perf_counter()
        cost(keep)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02
