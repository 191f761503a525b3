"""Copies of modules: what copy.deepcopy gives, and where a tensor has a history what it would give without it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effp_fx.module_copy import copied


class Odd(nn.Module):
    """Has every kind of thing that a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)])
        self.again = self.layers[0]
        self.tied = self.layers[0].weight
        self.settings: dict[str, Any] = {"sizes": [1, 2], "shape": (3, 4), "names": {"a", "b"}}
        self.same = self.settings["sizes"]
        self.pairs = [(nn.Identity(), "kept")]
        self.register_forward_hook(lambda module, inputs, output: output)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x))


@pytest.mark.parametrize("copy_of", [copied, copy.deepcopy])
def test_nothing_is_shared_but_what_was_shared_within(copy_of: Any) -> None:
    model = Odd().eval()
    twin = copy_of(model)
    assert type(twin) is Odd
    assert not twin.training
    assert twin.again is twin.layers[0]
    assert twin.same is twin.settings["sizes"]
    assert twin.settings == model.settings
    assert twin.settings["names"] is not model.settings["names"]
    assert twin.pairs[0][0] is not model.pairs[0][0]
    assert twin.tied is twin.layers[0].weight is not model.tied
    for (name, one), (other, two) in zip(twin.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(one, two)
    assert list(vars(twin)) == list(vars(model))
    twin.layers[1].running_mean.add_(1)
    twin.settings["sizes"].append(3)
    assert model.layers[1].running_mean.sum() == 0
    assert model.settings["sizes"] == [1, 2]


def test_the_memo_says_what_is_shared() -> None:
    model = Odd()
    twin = copied(model, {id(parameter): parameter for parameter in model.parameters()})
    assert twin.layers[0].weight is model.layers[0].weight
    assert twin.layers[1].running_mean is not model.layers[1].running_mean


def test_a_tensor_with_a_history_comes_out_as_a_value() -> None:
    model = Odd()
    model.seen = model.layers[0](torch.rand(2, 4))
    model.kept = {"all": [model.seen * 2]}
    twin = copied(model)
    assert twin.seen.grad_fn is None
    assert torch.equal(twin.seen, model.seen)
    assert torch.equal(twin.kept["all"][0], model.kept["all"][0])
    assert model.seen.grad_fn is not None


def test_a_way_of_its_own_is_respected() -> None:
    class Counts(nn.Module):
        copies = 0

        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            Counts.copies += 1
            return memo.setdefault(id(self), nn.Identity())

    twin = copied(nn.Sequential(Counts(), nn.Linear(2, 2)))
    assert Counts.copies == 1
    assert isinstance(twin[0], nn.Identity)


def test_an_lstm_keeps_its_flat_weights() -> None:
    twin = copied(nn.LSTM(3, 4))
    assert all(one is two for one, two in zip(twin._flat_weights, twin.parameters(), strict=True))
