"""Tests of example inputs: what is accepted, how they are changed, what is inferred, and what is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from effp_fx.errors import InputError
from effp_fx.inputs import (
    Example,
    as_example,
    check_example,
    describe_mismatch,
    first_samples,
    infer_example,
    map_tensors,
    random_input,
    repeat_batch,
    samples,
    to_dtype,
)


class Frames(NamedTuple):
    """Two tensors that are one input."""

    first: torch.Tensor
    second: torch.Tensor


def image(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 8, 8)


@pytest.mark.parametrize(
    ("value", "args", "kwargs"),
    [
        (torch.ones(2), 1, 0),
        ([torch.ones(2), torch.ones(3)], 1, 0),
        ((torch.ones(2), torch.ones(3)), 2, 0),
        ({"pixel_values": torch.ones(2)}, 0, 1),
        (({"image": torch.ones(2)},), 1, 0),
        (Frames(torch.ones(1), torch.ones(1)), 1, 0),
        ({1: torch.ones(2)}, 1, 0),
    ],
    ids=["tensor", "list", "tuple", "dict", "wrapped dict", "named tuple", "dict with numbers"],
)
def test_what_a_user_may_give(value: Any, args: int, kwargs: int) -> None:
    example = as_example(value)
    assert (len(example.args), len(example.kwargs)) == (args, kwargs)
    assert as_example(example) is example


@pytest.mark.parametrize("value", [None, (), {}, [], 3, "image.jpg"])
def test_inputs_without_a_tensor_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match="hold no tensor") as caught:
        as_example(value)
    assert "example_inputs=" in str(caught.value)


def test_map_tensors_reaches_every_tensor_and_keeps_the_rest() -> None:
    example = Example(([torch.ones(1), {"a": torch.ones(2)}], 3), {"scale": torch.ones(3), "name": "x"})
    doubled = map_tensors(lambda t: t * 2, example)
    assert [float(t.sum()) for t in doubled.tensors()] == [2, 4, 6]
    assert doubled.args[1] == 3 and doubled.kwargs["name"] == "x"
    assert [float(t.sum()) for t in example.tensors()] == [1, 2, 3]


def test_to_dtype_leaves_whole_numbers_and_masks() -> None:
    example = Example((torch.ones(1), torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool)))
    assert [t.dtype for t in to_dtype(example, torch.float64).tensors()] == [torch.float64, torch.int64, torch.bool]


def test_first_samples_cuts_what_is_as_long_as_the_batch() -> None:
    image, table = torch.rand(3, 8, 8), torch.rand(5, 2)
    lists = Example(([image] * 4, [{"boxes": table}] * 4), {"scale": 2.0, "table": table})
    assert samples(lists) == 4
    few = first_samples(lists, 1)
    assert [len(few.args[0]), len(few.args[1])] == [1, 1]
    assert few.args[1][0]["boxes"] is table
    assert few.kwargs == {"scale": 2.0, "table": table}
    keywords = Example((), {"pixels": torch.rand(4, 3, 8, 8), "mask": {"a": torch.rand(4, 8)}, "flag": torch.tensor(1)})
    shapes = [tuple(tensor.shape) for tensor in first_samples(keywords, 2).tensors()]
    assert shapes == [(2, 3, 8, 8), (2, 8), ()]
    assert first_samples(keywords, 8) is keywords
    assert samples(Example((torch.tensor(1.0),))) == 1


def test_repeat_batch_stretches_tensors_and_repeats_lists() -> None:
    example = Example(
        ([image()[0], image()[0]], [{"boxes": torch.ones(5, 4)}] * 2, image(2)),
        {"mask": torch.ones(2, 8, 8), "scale": torch.tensor(2.0), "pair": Frames(image(), image()), "k": 4},
    )
    twice = repeat_batch(example, 2)
    assert len(twice.args[0]) == len(twice.args[1]) == 4
    assert twice.args[1][3]["boxes"].shape == (5, 4)
    assert twice.args[2].shape == (4, 3, 8, 8)
    assert twice.kwargs["mask"].shape == (4, 8, 8)
    assert twice.kwargs["scale"].ndim == 0 and twice.kwargs["k"] == 4
    assert isinstance(twice.kwargs["pair"], Frames) and len(twice.kwargs["pair"].first) == 2


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)), (1, 3, 224, 224)),
        (nn.Sequential(nn.Conv1d(7, 4, 3)), (1, 7, 256)),
        (nn.Sequential(nn.Conv3d(3, 4, 3)), (1, 3, 16, 112, 112)),
        (nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 2)), (1, 12)),
        (nn.Sequential(nn.Linear(12, 4), nn.Conv2d(64, 4, 1), nn.Conv2d(1, 4, 1)), (1, 1, 224, 224)),
        (nn.Sequential(nn.Conv2d(64, 4, 1), nn.Linear(12, 4)), (1, 64, 224, 224)),
    ],
    ids=["2d", "1d", "3d", "linear", "image first", "no image"],
)
def test_infer_from_the_first_layer(model: nn.Module, shape: tuple[int, ...]) -> None:
    (tensor,) = infer_example(model).tensors()
    assert tensor.shape == shape


def test_infer_takes_the_dtype_of_the_layer_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    first, again = (infer_example(nn.Linear(3, 4).double()).tensors()[0] for _ in range(2))
    torch.set_rng_state(state)
    assert first.dtype == torch.float64
    assert torch.equal(first, again)


def test_random_input_does_not_touch_the_random_state() -> None:
    state = torch.get_rng_state()
    random_input((2, 3), like=torch.ones(1))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("model", [nn.ReLU(), nn.LazyConv2d(3, 3), nn.Embedding(3, 4)])
def test_what_cannot_be_inferred_says_what_to_write(model: nn.Module) -> None:
    with pytest.raises(InputError, match=f"none can be inferred for {type(model).__name__}") as caught:
        infer_example(model)
    assert "example_inputs=torch.rand(1, 3, 224, 224)" in str(caught.value)


@pytest.mark.parametrize(
    "example",
    [Example((torch.ones(0, 3, 8, 8),)), Example((), {"x": torch.ones(0, 3)}), Example(([], image()))],
    ids=["positional", "keyword", "list"],
)
def test_an_empty_batch_is_refused(example: Example) -> None:
    with pytest.raises(InputError, match="empty batch") as caught:
        check_example(example, nn.Conv2d(3, 4, 3))
    assert "input" in str(caught.value.where)


def test_an_image_without_boxes_is_a_batch() -> None:
    check_example(Example(([image()[0]], [{"boxes": torch.ones(0, 4)}])), nn.Conv2d(3, 4, 3))


def test_another_device_is_refused() -> None:
    with pytest.raises(InputError, match="not on the device of the model") as caught:
        check_example(Example((image().to("meta"),)), nn.Conv2d(3, 4, 3))
    assert caught.value.seen == "inputs on meta, parameters on cpu"


def test_a_difference_of_dtype_is_described_not_refused() -> None:
    model = nn.Conv2d(3, 4, 3)
    check_example(Example((image().double(),)), model)
    assert describe_mismatch(Example((image(),)), model) is None
    assert describe_mismatch(Example((image(),)), nn.ReLU()) is None
    text = describe_mismatch(Example((image().double(),)), model)
    assert text == "inputs of dtype float64, parameters of dtype float32"
    assert "no floating input (dtypes uint8)" in str(describe_mismatch(Example((image().byte(),)), model))
