"""Models that look like bad input and are none: parametrised, hooked, pruned before, of another dtype, wrapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import effp_fx
from effp_fx import binding
from tests.untouched import Small, untouched

IMAGE = torch.rand(2, 3, 8, 8)


def small(kind: Callable[[], nn.Module] = Small) -> nn.Module:
    return kind().eval()


def pruned(model: nn.Module, inputs: Any = IMAGE, **options: Any) -> nn.Module:
    """Prune with everything watched, and hold the two models against each other's FLOPs."""
    with untouched(model, *([inputs] if isinstance(inputs, Tensor) else [])):
        compact = effp_fx.prune(model, inputs, **options)
    summary = effp_fx.plan_of(compact).summary
    assert int(summary["flops_after"]) < int(summary["flops_before"])
    return compact


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.spectral_norm,
        pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore::FutureWarning")),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "old spectral_norm", "old weight_norm"],
)
def test_a_parametrised_layer_simply_works(change: Callable[[nn.Module], nn.Module]) -> None:
    model = small()
    change(model.second)
    compact = pruned(model, target_flops=0.9)
    assert list(compact.state_dict()) == list(model.state_dict())
    compact.train()(IMAGE).square().sum().backward()
    assert all(parameter.grad is not None for parameter in compact.parameters())


def test_hooks_go_along_and_are_not_lost() -> None:
    model, seen = small(), []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    model.second.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    compact = pruned(model)
    seen.clear()
    compact(IMAGE)
    kept = int(compact.norm.num_features)
    assert kept < 8
    assert seen == [(2, kept, 8, 8)]


def test_a_model_that_keeps_its_last_output_simply_works() -> None:
    class Keeps(Small):
        def forward(self, x: Tensor) -> Any:
            self.last = super().forward(x)
            return self.last

    model = small(Keeps)
    model(IMAGE)
    pruned(model)


def test_a_model_already_pruned_simply_works() -> None:
    model = small()
    once = pruned(model, target_flops=0.7)
    twice = pruned(once, target_flops=0.5)
    again = binding.apply(model, effp_fx.plan_of(twice))
    assert torch.equal(again(IMAGE), twice(IMAGE))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_another_dtype_simply_works(dtype: torch.dtype) -> None:
    assert next(pruned(small().to(dtype), IMAGE.to(dtype)).parameters()).dtype == dtype


def test_the_state_the_user_is_in_does_not_matter() -> None:
    inputs = IMAGE.clone().requires_grad_()
    with torch.inference_mode():
        assert next(effp_fx.prune(small(), IMAGE).parameters()).shape[0] < 8
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        pruned(small().train().requires_grad_(False), inputs)
    pruned(small(), inputs * 2)


@pytest.mark.ultralytics
def test_a_yolo_object_gives_a_yolo_object() -> None:
    ultralytics = pytest.importorskip("ultralytics")
    yolo = ultralytics.YOLO("yolov8n.yaml", verbose=False)
    yolo.model.eval()
    image = torch.rand(1, 3, 64, 64)
    with untouched(yolo, image):
        compact = effp_fx.prune(yolo, image)
    assert type(compact) is type(yolo)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in yolo.parameters())
    assert effp_fx.verify(yolo, yolo, image).equal
    assert compact.model(image)[0].shape == yolo.model(image)[0].shape


class Drops(nn.Module):
    """Dropout in place and in attention, both behind channels that go; then a draw that must be the same for both."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(16, 4, 64, dropout=0.3, batch_first=True)
        self.body = nn.Sequential(nn.Linear(16, 64), nn.Hardswish(), nn.Dropout(0.5, inplace=True), nn.Linear(64, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.encoder(self.patches(x).flatten(2).transpose(1, 2))
        branch = self.body(x)
        if self.training:  # stochastic depth
            branch = branch * torch.empty(len(x), 1, 1).bernoulli_(0.8)
        return self.head((x + branch).mean(1))


def test_dropout_does_not_part_masked_and_compact() -> None:
    pruned(small(Drops), target_flops=0.7)
