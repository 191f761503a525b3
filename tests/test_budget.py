"""The search meets its targets from above, as closely as one channel allows, and hollows nothing out needlessly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from effp_fx.budget import resolve_target, search
from effp_fx.cost import Cost, flops, params
from effp_fx.errors import EffpError, TargetError, UnreachableTargetError
from effp_fx.groups import Analysis, Frozen
from effp_fx.ladder import Staircase, build_ladder, step_of
from tests.hand_made import Sketch, chain, fixed


@st.composite
def analyses(draw: st.DrawFn) -> Analysis:
    """Random nets: any layer reads any mixture of earlier groups, or itself; several rows per channel; frozen ends."""
    sketch = Sketch()
    made = [fixed(draw(st.integers(1, 4)))]
    for i in range(draw(st.integers(1, 6))):
        bounds = {"min_kept": draw(st.sampled_from([1, 1, 3])), "multiple_of": draw(st.sampled_from([1, 1, 2]))}
        rows = draw(st.sampled_from([(1,), (1,), (4,), (1, 3)]))
        numbers = sketch.group(draw(st.integers(3, 24)), name=f"g{i}", rows=rows, **bounds)
        made.append(np.repeat(numbers, max(rows)))
        for reads in range(draw(st.integers(1, 2))):
            into = np.concatenate([made[draw(st.integers(0, len(made) - 1))] for _ in range(draw(st.integers(1, 3)))])
            sketch.layer(f"g{i}.{reads}", made[-1], into, positions=draw(st.integers(1, 50)), kernel=9, bias=True)
    sketch.layer("head", fixed(3), made[-1], positions=draw(st.integers(1, 9)))
    return sketch.analysis()


def scores_for(analysis: Analysis, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kinds = (np.ones(analysis.channels), rng.exponential(size=analysis.channels), rng.integers(0, 2, analysis.channels))
    return np.asarray(kinds[seed % 3], dtype=np.float64)


def kept_in(analysis: Analysis, keep: np.ndarray) -> list[int]:
    return [int(keep[group.start : group.stop].sum()) for group in analysis.groups]


def blocks_added(analysis: Analysis, keep: np.ndarray, scores: np.ndarray, round_to: int) -> list[np.ndarray]:
    """Every mask that has one block more of one group, by the plain definition."""
    found = []
    for group in analysis.groups:
        own = slice(group.start, group.stop)
        _, block = step_of(group, round_to)
        if keep[own].sum() + block > group.channels:
            continue
        out = [number for number in range(group.start, group.stop) if not keep[number]]
        more = keep.copy()
        more[sorted(out, key=lambda number: (-scores[number], number))[:block]] = True
        found.append(more)
    return found


@settings(max_examples=150)
@given(analyses(), st.floats(0.05, 1.0), st.sampled_from([1, 1, 4, 8]), st.integers(0, 99))
def test_never_over_and_no_block_more_would_fit(analysis: Analysis, part: float, round_to: int, seed: int) -> None:
    cost, scores = flops(analysis), scores_for(analysis, seed)
    target = part * cost.dense
    try:
        keep = search(analysis, scores, {"flops": cost}, {"flops": target}, round_to=round_to)
    except UnreachableTargetError:
        least = build_ladder(analysis, scores, round_to=round_to)
        assert cost(least.keep(np.zeros_like(least.rungs))) > target
        return
    assert cost(keep) <= target
    assert all(cost(more) > target for more in blocks_added(analysis, keep, scores, round_to))
    for group, count in zip(analysis.groups, kept_in(analysis, keep), strict=True):
        least_count, block = step_of(group, round_to)
        assert count >= max(1, least_count)
        assert (count - least_count) % block == 0
        kept = keep[group.start : group.stop]
        assert (
            kept.all() or scores[group.start : group.stop][kept].min() >= scores[group.start : group.stop][~kept].max()
        )
    assert (keep == search(analysis, scores, {"flops": cost}, {"flops": target}, round_to=round_to)).all()


@settings(max_examples=150)
@given(analyses(), st.floats(0.2, 0.9), st.floats(-0.15, 0.15), st.sampled_from([1, 4]), st.integers(0, 99))
def test_two_targets_are_never_over_and_no_block_more_would_fit(
    analysis: Analysis, part: float, other: float, round_to: int, seed: int
) -> None:
    costs = {"flops": flops(analysis), "params": params(analysis)}
    targets = {"flops": part * costs["flops"].dense, "params": min(part + other, 1.0) * costs["params"].dense}
    assume(targets["params"] > 0)
    scores = scores_for(analysis, seed)
    try:
        keep = search(analysis, scores, costs, targets, round_to=round_to)
    except TargetError as error:
        assert isinstance(error, UnreachableTargetError) or "contradict" in str(error)
        return
    assert all(costs[name](keep) <= target for name, target in targets.items())
    for more in blocks_added(analysis, keep, scores, round_to):
        assert any(costs[name](more) > target for name, target in targets.items())


@given(analyses(), st.integers(0, 99))
def test_the_staircase_is_the_cost_at_every_state_and_its_changes_are_exact(analysis: Analysis, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ladder = build_ladder(analysis, scores_for(analysis, seed), round_to=2)
    cost = flops(analysis)
    stair = Staircase(cost, ladder)
    at = rng.integers(0, ladder.rungs + 1)
    assert stair(at) == cost(ladder.keep(at))
    for by in (1, -1):
        for group, change in enumerate(stair.change(at, by)):
            there = at.copy()
            there[group] += by
            possible = 0 <= there[group] <= ladder.rungs[group]
            assert change == (cost(ladder.keep(there)) - cost(ladder.keep(at)) if possible else math.inf)


def vgg_like() -> Analysis:
    return chain(
        [64, 64, 128, 128, 256, 256, 512, 512], positions=[90000, 90000, 22500, 22500, 5625, 5625, 1444, 1444]
    ).analysis()


@pytest.mark.parametrize("kind", ["ones", "exponential", "nearly equal"])
@pytest.mark.parametrize("parts", [(0.5, 0.5), (0.5, 0.55), (0.45, 0.5), (0.3, 0.3)])
def test_two_targets_are_both_met_to_less_than_one_channel(kind: str, parts: tuple[float, float]) -> None:
    analysis = vgg_like()
    rng = np.random.default_rng(0)
    scores = {
        "ones": np.ones(analysis.channels),
        "exponential": rng.exponential(size=analysis.channels),
        "nearly equal": 1 + 0.03 * rng.standard_normal(analysis.channels),
    }[kind]
    costs = {"flops": flops(analysis), "params": params(analysis)}
    targets = {name: part * costs[name].dense for name, part in zip(costs, parts, strict=True)}
    keep = search(analysis, scores, costs, targets)
    for name, target in targets.items():
        one_channel = costs[name].marginal(keep)
        assert 0 <= target - costs[name](keep) < np.median(one_channel)


def test_channels_that_nothing_tells_apart_are_not_taken_from_one_group_alone() -> None:
    analysis = chain([64] * 6).analysis()
    cost = params(analysis)
    keep = search(analysis, np.ones(analysis.channels), {"params": cost}, {"params": 0.5 * cost.dense})
    # The first and the last group cost less, for the layers at the ends read 3 and write 10 channels.
    assert min(kept_in(analysis, keep)) >= 36
    assert max(kept_in(analysis, keep)[1:-1]) <= 46


def test_no_group_falls_far_below_the_uniform_width_whatever_it_costs() -> None:
    analysis = chain([64] * 4, positions=[100_000, 1, 1, 1]).analysis()
    cost = flops(analysis)
    keep = search(analysis, np.ones(analysis.channels), {"flops": cost}, {"flops": 0.5 * cost.dense})
    assert min(kept_in(analysis, keep)) >= 0.5 * 0.5 * 64


def test_dead_channels_go_first() -> None:
    analysis = chain([32, 32]).analysis()
    scores = np.concatenate([np.ones(32), np.ones(16), np.zeros(16)])
    cost = flops(analysis)
    keep = search(analysis, scores, {"flops": cost}, {"flops": 0.5 * cost.dense})
    assert not keep[48:].any()
    assert keep[:48].mean() > 0.9


def test_a_group_of_nothing_but_zeros_is_a_group_of_equals() -> None:
    analysis = chain([32, 32, 32]).analysis()
    cost = flops(analysis)
    keep = search(analysis, np.zeros(96), {"flops": cost}, {"flops": 0.5 * cost.dense})
    assert min(kept_in(analysis, keep)) > 12


def test_only_ratios_within_a_group_count() -> None:
    analysis = chain([32, 32, 32, 32]).analysis()
    scores = np.random.default_rng(0).uniform(0.5, 1.5, 128)
    louder = scores * np.repeat([1.0, 5.0, 1.0, 1.0], 32)
    cost = params(analysis)
    target = {"params": 0.5 * cost.dense}
    assert (
        search(analysis, scores, {"params": cost}, target) == search(analysis, louder, {"params": cost}, target)
    ).all()


@pytest.mark.parametrize("names", [("flops",), ("params",), ("flops", "params")])
def test_the_uniform_width_is_the_optimum_where_nothing_tells_channels_apart(names: tuple[str, ...]) -> None:
    analysis = chain([64, 32, 128, 64, 256], positions=[4096, 4096, 1024, 1024, 64]).analysis()
    both = {"flops": flops(analysis), "params": params(analysis)}
    costs = {name: both[name] for name in names}
    targets = {name: 0.5 * cost.dense for name, cost in costs.items()}
    kept = np.array(kept_in(analysis, search(analysis, np.ones(analysis.channels), costs, targets)))
    shares = kept / [group.channels for group in analysis.groups]
    assert shares.max() - shares.min() < 0.1


def test_a_group_that_is_worth_more_keeps_more_and_one_of_unknown_worth_counts_for_its_cost() -> None:
    analysis = chain([64] * 4).analysis()
    costs, target = {"params": params(analysis)}, {"params": 0.5 * params(analysis).dense}

    def kept(*worth: float) -> list[int]:
        given = np.array(worth) if worth else None
        return kept_in(analysis, search(analysis, np.ones(analysis.channels), costs, target, worth=given))

    more = kept(1.0, 4.0, 1.0, 1.0)
    assert more[1] > kept()[1] + 4 and more[2] < kept()[2]
    assert more == kept(10.0, 40.0, 10.0, 10.0)
    assert kept(0.0, 0.0, 0.0, 0.0) == kept(0.0, 7.0, 0.0, 0.0) == kept()


def test_what_costs_more_of_the_ranked_cost_goes_first() -> None:
    analysis = chain([64] * 4, positions=[4096, 4096, 16, 16]).analysis()
    costs, target = {"params": params(analysis)}, {"params": 0.5 * params(analysis).dense}
    ones = np.ones(analysis.channels)
    even = kept_in(analysis, search(analysis, ones, costs, target))
    ranked = kept_in(analysis, search(analysis, ones, costs, target, rank_by=flops(analysis)))
    assert ranked[0] < even[0] and ranked[3] > even[3]


@pytest.mark.parametrize(
    ("size", "rows", "round_to", "expected"),
    [
        (64, (1,), 8, (8, 8)),
        (12, (1,), 8, (8, 8)),
        (6, (1,), 8, (4, 4)),
        (3, (1,), 8, (2, 2)),
        (12, (64,), 8, (1, 1)),
        (12, (2,), 8, (4, 4)),
        (12, (1, 2), 8, (8, 8)),
        (5, (12,), 8, (2, 2)),
        (64, (1,), 1, (1, 1)),
        (10, (1,), 6, (6, 6)),
    ],
)
def test_rounding_is_of_rows_and_gives_way_in_small_groups(
    size: int, rows: tuple[int, ...], round_to: int, expected: tuple[int, int]
) -> None:
    sketch = Sketch()
    sketch.group(size, rows=rows)
    assert step_of(sketch.groups[0], round_to) == expected


def test_bounds_of_a_group_are_kept_beside_rounding() -> None:
    sketch = Sketch()
    sketch.group(64, min_kept=20, multiple_of=3)
    assert step_of(sketch.groups[0], 8) == (24, 24)
    assert step_of(sketch.groups[0], 1) == (21, 3)
    assert step_of(replace(sketch.groups[0], min_kept=63), 8) == (64, 1)


def test_rounding_holds_even_where_nothing_need_be_removed() -> None:
    analysis = chain([20, 36]).analysis()
    cost = flops(analysis)
    keep = search(analysis, np.ones(56), {"flops": cost}, {"flops": cost.dense}, round_to=8)
    assert kept_in(analysis, keep) == [16, 32]
    assert search(analysis, np.ones(56), {"flops": cost}, {"flops": cost.dense}).all()


def unreachable() -> tuple[Analysis, Cost]:
    sketch = chain([16, 16], outputs=40)
    sketch.layer("wide", fixed(200), fixed(90))
    sketch.layer("narrow", fixed(20), fixed(90))
    for tensor, count, why in (
        ("narrow.weight", 20, "softmax over channels"),
        ("wide.weight", 200, "no rule for the op"),
    ):
        sketch.frozen.append(Frozen(tensor, 0, count, why, "aten.foo", "neck", "net.py:7, in forward"))
    analysis = sketch.analysis()
    return analysis, params(analysis)


def test_an_unreachable_target_names_the_smallest_and_what_stands_in_the_way_largest_first() -> None:
    analysis, cost = unreachable()
    with pytest.raises(UnreachableTargetError) as caught:
        search(analysis, np.ones(32), {"params": cost}, {"params": 0.1 * cost.dense})
    least = np.zeros(32, dtype=bool)
    least[[0, 16]] = True
    text = str(caught.value)
    assert f"the smallest reachable is {cost(least):,.0f} ({100 * cost(least) / cost.dense:.3g} %)" in text
    wide, narrow = text.index("no rule for the op (at aten.foo, in neck, net.py:7"), text.index("softmax over channels")
    assert wide < narrow
    assert f"{100 * 18000 / cost.dense:.3g} %  no rule for the op" in text
    assert f"ask for {math.ceil(1000 * cost(least) / cost.dense) / 1000}" in text


def test_the_smallest_reachable_is_reached() -> None:
    analysis, cost = unreachable()
    least = np.zeros(32, dtype=bool)
    least[[0, 16]] = True
    keep = search(analysis, np.arange(32)[::-1].astype(float), {"params": cost}, {"params": cost(least)})
    assert (keep == least).all()


def test_minima_and_rounding_are_reasons_too() -> None:
    analysis = chain([16, 16]).analysis()
    cost = flops(analysis)
    with pytest.raises(
        UnreachableTargetError, match=r"group conv1 keeps at least 16 of 16 \(smallest kept or rounding\)"
    ):
        search(analysis, np.ones(32), {"flops": cost}, {"flops": 0.5 * cost.dense}, round_to=16)


def test_targets_that_contradict_each_other_are_refused_with_what_could_be() -> None:
    analysis = chain([32, 32]).analysis()
    costs = {"flops": flops(analysis), "params": params(analysis)}
    targets = {"flops": 0.2 * costs["flops"].dense, "params": 0.9 * costs["params"].dense}
    with pytest.raises(
        TargetError, match=r"contradict each other: the others leave no more than 0\.195 of params"
    ) as caught:
        search(analysis, np.ones(64), costs, targets)
    assert "leave params out, or set it to at most 0.195" in str(caught.value)
    keep = search(analysis, np.ones(64), costs, targets, closely=False)  # or only held to, as a session that runs
    assert all(costs[name](keep) <= target for name, target in targets.items())
    for more in blocks_added(analysis, keep, np.ones(64), 1):
        assert costs["flops"](more) > targets["flops"]


def test_a_target_at_the_dense_cost_does_not_bind() -> None:
    analysis = vgg_like()
    costs = {"flops": flops(analysis), "params": params(analysis)}
    targets = {"flops": 0.5 * costs["flops"].dense, "params": costs["params"].dense}
    scores = np.random.default_rng(0).uniform(size=analysis.channels)
    alone = search(analysis, scores, {"flops": costs["flops"]}, {"flops": targets["flops"]})
    assert (search(analysis, scores, costs, targets) == alone).all()


@pytest.mark.parametrize("scores", [np.ones(3), np.array([1.0, math.nan] + [1.0] * 30), np.full(32, math.inf)])
def test_scores_must_be_one_finite_number_per_channel(scores: np.ndarray) -> None:
    analysis = chain([16, 16]).analysis()
    with pytest.raises(EffpError, match="one finite number per channel"):
        search(analysis, scores, {"flops": flops(analysis)}, {"flops": 1e3})


def test_nothing_to_prune_is_well_or_unreachable() -> None:
    sketch = Sketch()
    sketch.layer("only", fixed(3), fixed(2))
    analysis = sketch.analysis()
    cost = flops(analysis)
    assert search(analysis, np.zeros(0), {"flops": cost}, {"flops": cost.dense}).shape == (0,)
    with pytest.raises(UnreachableTargetError):
        search(analysis, np.zeros(0), {"flops": cost}, {"flops": 0.5 * cost.dense})


def test_targets_are_parts_up_to_one_and_counts_above() -> None:
    assert resolve_target(0.5, 1000.0, "flops") == 500
    assert resolve_target(1, 1000.0, "flops") == 1000
    assert resolve_target(300, 1000.0, "flops") == 300
    assert resolve_target(np.float32(0.25), 1000.0, "flops") == 250


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "finite number above 0"),
        (-0.5, "finite number above 0"),
        (math.nan, "finite number above 0"),
        (math.inf, "finite number above 0"),
        (1001, "must not be above the dense cost"),
        ("half", "must be a number"),
        (True, "must be a number"),
        (None, "must be a number"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(value: object, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        resolve_target(value, 1000.0, "target_flops")  # type: ignore[arg-type]
    assert "target_flops" in str(caught.value)
    assert "1,000" in str(caught.value)


def test_two_thousand_layers_and_a_hundred_thousand_channels_meet_both_targets() -> None:
    rng = np.random.default_rng(0)
    analysis = chain([50] * 2000, positions=rng.integers(1, 2000, 2000).tolist()).analysis()
    costs = {"flops": flops(analysis), "params": params(analysis)}
    targets = {name: 0.5 * cost.dense for name, cost in costs.items()}
    keep = search(analysis, rng.uniform(size=100_000), costs, targets)
    assert all(0.9999 < costs[name](keep) / target <= 1 for name, target in targets.items())
