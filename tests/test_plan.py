"""Plans: from a keep array, as JSON, against a model, one after another."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from effp_fx import index_ranges
from effp_fx.errors import FileFormatError, PlanMismatchError, TargetError
from effp_fx.plan import ATTRIBUTE, GroupPlan, Plan, TensorPlan, from_keep, package_version, plan_of


@dataclass
class Dims:
    shape: tuple[int, ...]
    dims: dict[int, Any]
    is_parameter: bool = True


@dataclass
class Term:
    constant: float
    factors: tuple[Any, ...]
    layer: str = "conv"
    node: str = "conv"


@dataclass
class Group:
    name: str
    start: int
    stop: int


@dataclass
class Analysis:
    """What from_keep reads of an analysis: conv (4 of 6 outputs prunable) -> bn -> head (12 inputs, two a channel)."""

    channels: int = 6
    groups: tuple[Group, ...] = (Group("conv", 0, 4), Group("other", 4, 6))
    tensors: dict[str, Dims] = field(default_factory=dict)
    flop_terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        out, twice = np.array([0, 1, -1, 2, 3, -1]), np.repeat(np.array([0, 1, -1, 2, 3, -1]), 2)
        self.tensors = {
            "conv.weight": Dims((6, 3, 1, 1), {0: out}),
            "conv.bias": Dims((6,), {0: out}),
            "bn.running_mean": Dims((6,), {0: out}, False),
            "bn.num_batches_tracked": Dims((), {}, False),
            "head.weight": Dims((2, 12), {0: np.array([4, 5]), 1: twice}),
        }
        self.flop_terms = (Term(2.0 * 3, (out,)), Term(2.0, (twice, np.array([4, 5])), "head"))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def plan() -> Plan:
    """The plan for net() that keeps channels 0, 1 and 3 of the first convolution."""
    kept = (0, 1, 3)
    tensors = {
        "0.weight": TensorPlan((4, 3, 1, 1), {0: kept}),
        "0.bias": TensorPlan((4,), {0: kept}),
        "1.weight": TensorPlan((4,), {0: kept}),
        "1.bias": TensorPlan((4,), {0: kept}),
        "1.running_mean": TensorPlan((4,), {0: kept}),
        "1.running_var": TensorPlan((4,), {0: kept}),
        "2.weight": TensorPlan((2, 4, 1, 1), {1: kept}),
        "2.bias": TensorPlan((2,)),
    }
    attributes = {"0": {"out_channels": 3}, "1": {"num_features": 3}, "2": {"in_channels": 3}}
    summary = {"flops_before": 40, "flops_after": 30, "params_before": 34, "params_after": 26, "effp_fx": "1"}
    return Plan(tensors, attributes, {"0": GroupPlan(4, kept)}, summary)


def pruned_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))


@given(st.sets(st.integers(0, 300)))
def test_ranges_come_back(indices: set[int]) -> None:
    ordered = tuple(sorted(indices))
    assert index_ranges.from_text(index_ranges.to_text(ordered), 301) == ordered


def test_ranges_read_as_people_write_them() -> None:
    assert index_ranges.to_text((0, 1, 2, 4, 6, 7)) == "0-2,4,6-7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3,2", "unsorted"),
        ("1,1", "repeated"),
        ("0-3,3", "repeated"),
        ("4-2", "does not rise"),
        ("2-2", "does not rise"),
        ("8", "outside 0-7"),
        ("0-99999999", "outside 0-7"),
        ("-1", "not an index"),
        ("01", "not an index"),
        ("1,,2", "not an index"),
        ("1, 2", "not an index"),
        ("٣", "not an index"),
        ("9" * 5000, "not an index"),
    ],
)
def test_ranges_refuse(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index_ranges.from_text(text, 8)


def test_from_keep_keeps_what_is_kept_or_belongs_to_no_channel() -> None:
    keep = np.array([True, False, True, False, True, True])
    made = from_keep(Analysis(), keep, {"conv": {"out_channels": 4}})  # type: ignore[arg-type]
    assert made.tensors == {
        "conv.weight": TensorPlan((6, 3, 1, 1), {0: (0, 2, 3, 5)}),
        "conv.bias": TensorPlan((6,), {0: (0, 2, 3, 5)}),
        "bn.running_mean": TensorPlan((6,), {0: (0, 2, 3, 5)}),
        "head.weight": TensorPlan((2, 12), {1: (0, 1, 4, 5, 6, 7, 10, 11)}),
    }
    assert made.groups == {"conv": GroupPlan(4, (0, 2)), "other": GroupPlan(2, (0, 1))}
    assert made.attributes == {"conv": {"out_channels": 4}}
    assert made.summary == {
        "flops_before": 6 * 6 + 2 * 12 * 2,
        "flops_after": 6 * 4 + 2 * 8 * 2,
        "params_before": 18 + 6 + 24,
        "params_after": 12 + 4 + 16,
        "effp_fx": package_version(),
    }
    assert all(
        type(index) is int for tensor in made.tensors.values() for kept in tensor.keep.values() for index in kept
    )
    assert Plan.from_json(made.to_json()) == made


def test_from_keep_of_everything_cuts_nothing() -> None:
    made = from_keep(Analysis(), np.ones(6, dtype=bool), {}, {})  # type: ignore[arg-type]
    assert set(made.tensors) == {"conv.weight", "conv.bias", "head.weight"}
    assert not any(tensor.keep for tensor in made.tensors.values())


def test_from_keep_never_empties_a_group() -> None:
    with pytest.raises(TargetError, match="none kept in other"):
        from_keep(Analysis(), np.array([1, 1, 1, 1, 0, 0], dtype=bool), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [np.ones(5, dtype=bool), np.ones(6)])
def test_from_keep_refuses_an_array_of_another_kind(keep: Any) -> None:
    with pytest.raises(ValueError, match=r"expected bool \(6,\)"):
        from_keep(Analysis(), keep, {})  # type: ignore[arg-type]


def test_json_comes_back_equal_and_does_not_depend_on_order() -> None:
    one = plan()
    turned = Plan(
        dict(reversed(one.tensors.items())),
        dict(reversed(one.attributes.items())),
        one.groups,
        dict(reversed(one.summary.items())),  # type: ignore[call-overload]
    )
    assert Plan.from_json(one.to_json()) == one == Plan.from_json(turned.to_json())
    assert one.to_json() == turned.to_json()
    assert '"0.weight":{"keep":{"0":"0-1,3"},"shape":[4,3,1,1]}' in one.to_json()


def test_tuples_lists_and_foreign_integers_survive_json() -> None:
    values = {"a": (3,), "b": [1, 2], "c": [(1, 2), [3]], "d": (), "e": [], "f": np.int64(7)}
    again = Plan.from_json(Plan({}, {"": values}).to_json()).attributes[""]  # type: ignore[dict-item]
    assert again == {"a": (3,), "b": [1, 2], "c": [(1, 2), [3]], "d": (), "e": [], "f": 7}
    assert type(again["f"]) is int


def damaged(path: str, value: Any) -> str:
    """The JSON of plan() with the value at "a/b/c" replaced."""
    data = json.loads(plan().to_json())
    *parents, last = path.split("/")
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", "malformed"),
        ("version", 2, "version 2"),
        ("version", True, "version True"),
        ("more", {}, "the keys"),
        ("tensors", [], "an object"),
        ("tensors/0.weight", {"shape": [4]}, "the keys"),
        ("tensors/0.weight/shape", "4", "a list of sizes"),
        ("tensors/0.weight/shape", [4, -1], "an integer"),
        ("tensors/0.weight/shape", [4, True], "an integer"),
        ("tensors/0.weight/shape", [10**30], "an integer"),
        ("tensors/0.weight/keep", {"7": "0"}, "dimension '7'"),
        ("tensors/0.weight/keep", {"00": "0"}, "dimension '00'"),
        ("tensors/0.weight/keep", {"0": "0,4"}, "outside 0-3"),
        ("tensors/0.weight/keep", {"0": "2,1"}, "unsorted"),
        ("tensors/0.weight/keep", {"0": "1,1"}, "repeated"),
        ("tensors/0.weight/keep", {"0": ""}, "at least one"),
        ("tensors/0.weight/keep", {"0": [0, 1]}, "ascending indices"),
        ("tensors/0.weight/keep", {"0": "0-3"}, "every index kept"),
        ("attributes/0/out_channels", 3.5, "an integer"),
        ("attributes/0/out_channels", {"tuple": 3}, "a list"),
        ("attributes/0/out_channels", {"list": [3]}, "the keys"),
        ("attributes/0/__class__", 3, "the name of an attribute"),
        ("attributes/0/a.b", 3, "the name of an attribute"),
        ("groups/0/channels", 0, "an integer, 1 or more"),
        ("groups/0/kept", "0-4", "outside 0-3"),
        ("summary/flops_before", None, "a number or a string"),
    ],
)
def test_from_json_refuses_and_says_where(path: str, value: Any, message: str) -> None:
    with pytest.raises(FileFormatError, match=message.replace("(", r"\(")) as caught:
        Plan.from_json(damaged(path, value))
    assert caught.value.mend
    keys = path.split("/")
    if keys[0] in ("tensors", "attributes", "groups", "summary"):
        assert keys[-1 if len(keys) < 3 else 1] in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ('{"a": NaN}', "NaN"),
        ("[]", "malformed"),
        ('{"version": 1}', "malformed"),
    ],
)
def test_from_json_refuses_what_is_no_plan(text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        Plan.from_json(text)


def test_check_accepts_its_dense_model_and_its_pruned_one() -> None:
    plan().check(net())
    plan().check(pruned_net(), pruned=True)


def test_check_lets_buffers_that_lose_nothing_come_and_go() -> None:
    model = net()
    model.register_buffer("cache", torch.zeros(5), persistent=False)
    plan().check(model)


def test_check_asks_for_no_plan_of_an_integer_parameter() -> None:
    model = net()
    model.register_parameter("codes", nn.Parameter(torch.arange(3), requires_grad=False))
    plan().check(model)


def test_check_knows_a_tied_parameter_by_each_of_its_names() -> None:
    model = net()
    model.register_module("0", nn.Conv2d(3, 4, 1))
    model.register_module("again", model[0])
    other = copy.deepcopy(plan())
    other.tensors["again.weight"] = other.tensors.pop("0.weight")
    for one in (plan(), other):
        one.check(model)
        shapes = one.shapes_after(model)
        assert shapes["0.weight"] == shapes["again.weight"] == (3, 3, 1, 1)
        assert shapes["1.num_batches_tracked"] == () and shapes["2.weight"] == (2, 3, 1, 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1)), "1.weight: missing in the model"),
        (nn.Sequential(*net(), nn.Linear(2, 2)), r"3.weight: \(2, 2\) in the model, missing in the plan"),
        (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)),
            r"0.weight: \(8, 3, 1, 1\) in the model, \(4, 3, 1, 1\) in the plan;.*; and 2 more",
        ),
        (nn.Sequential(nn.LazyConv2d(4, 1), *net()[1:]), "0.weight: not yet initialised in the model"),
        (pruned_net(), "pruned already: give the dense one"),
    ],
)
def test_check_names_what_differs(model: nn.Module, message: str) -> None:
    with pytest.raises(PlanMismatchError, match=message):
        plan().check(model)


def test_check_names_modules_and_attributes_that_are_not_there() -> None:
    other = plan()
    other.attributes.update({"9": {"out_channels": 3}, "1": {"widths": 3}})
    with pytest.raises(PlanMismatchError, match="1: no attribute 'widths' in the model; 9: no such module"):
        other.check(net())


def test_two_plans_one_after_the_other_are_one() -> None:
    first = plan()
    second = Plan(
        {
            "0.weight": TensorPlan((3, 3, 1, 1), {0: (0, 2), 1: (1,)}),
            "0.bias": TensorPlan((3,), {0: (0, 2)}),
            "1.weight": TensorPlan((3,), {0: (0, 2)}),
            "1.bias": TensorPlan((3,), {0: (0, 2)}),
            "2.weight": TensorPlan((2, 3, 1, 1), {1: (0, 2)}),
            "2.bias": TensorPlan((2,)),
            "table": TensorPlan((9,), {0: (4,)}),
        },
        {"0": {"out_channels": 2}, "2": {"groups": 1}},
        {"0": GroupPlan(3, (0, 2)), "new": GroupPlan(9, (4,))},
        {"flops_before": 30, "flops_after": 20, "params_before": 26, "params_after": 18, "effp_fx": "2"},
    )
    both = first.then(second)
    assert both.tensors["0.weight"] == TensorPlan((4, 3, 1, 1), {0: (0, 3), 1: (1,)})
    assert both.tensors["2.weight"] == TensorPlan((2, 4, 1, 1), {1: (0, 3)})
    assert both.tensors["1.running_mean"] == first.tensors["1.running_mean"]
    assert both.tensors["table"] == second.tensors["table"]
    assert both.attributes == {
        "0": {"out_channels": 2},
        "1": {"num_features": 3},
        "2": {"in_channels": 3, "groups": 1},
    }
    assert both.groups == {"0": GroupPlan(4, (0, 3)), "new": GroupPlan(9, (4,))}
    assert both.summary == {
        "flops_before": 40,
        "flops_after": 20,
        "params_before": 34,
        "params_after": 18,
        "effp_fx": "2",
    }
    assert first == plan()


def test_a_group_that_changed_its_size_stands_beside_the_first() -> None:
    first = Plan({}, {}, {"a": GroupPlan(4, (0, 1))})
    both = first.then(Plan({}, {}, {"a": GroupPlan(3, (2,))}))
    assert both.groups == {"a": GroupPlan(4, (0, 1)), "a (later)": GroupPlan(3, (2,))}


@given(st.data())
def test_composition_is_indexing_twice(data: st.DataObject) -> None:
    def cut(shape: tuple[int, ...]) -> TensorPlan:
        keep = {}
        for dim, size in enumerate(shape):
            kept = tuple(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
            if len(kept) < size:
                keep[dim] = kept
        return TensorPlan(shape, keep)

    def apply(array: Any, tensor: TensorPlan) -> Any:
        for dim, kept in tensor.keep.items():
            array = np.take(array, kept, axis=dim)
        return array

    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple))
    first = cut(shape)
    second = cut(first.shape_after)
    array = np.arange(np.prod(shape)).reshape(shape)
    both = Plan({"a": first}).then(Plan({"a": second})).tensors["a"]
    np.testing.assert_array_equal(apply(array, both), apply(apply(array, first), second))
    assert Plan.from_json(Plan({"a": both}).to_json()).tensors["a"] == both


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (Plan({**plan().tensors}), r"0.weight: the first leaves \(3, 3, 1, 1\), the second needs \(4, 3, 1, 1\)"),
        (Plan({}), "2.bias: only in the first"),
        (Plan({"2.bias": TensorPlan((2,)), "x": TensorPlan((2,))}), "x: only in the second"),
    ],
)
def test_plans_that_do_not_follow_are_not_composed(second: Plan, message: str) -> None:
    with pytest.raises(PlanMismatchError, match=message):
        plan().then(second)


def test_plan_of_reads_what_the_model_carries() -> None:
    model = pruned_net()
    setattr(model, ATTRIBUTE, plan().to_json())
    assert plan_of(model) == plan() == plan_of(copy.deepcopy(model))


def test_plan_of_says_that_a_model_carries_none() -> None:
    with pytest.raises(PlanMismatchError, match="this Sequential carries no plan") as caught:
        plan_of(net())
    assert "effp_fx.prune" in str(caught.value)
