"""Bad input: each kind gives an error that says what, where and how to mend it, and nothing is changed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import effp_fx
from effp_fx import binding
from effp_fx.errors import (
    CaptureError,
    EffpError,
    GroupFileError,
    InputError,
    NameNotFoundError,
    PlanMismatchError,
    TargetError,
    UnreachableTargetError,
)
from effp_fx.models.tiny import NoNorm
from tests.untouched import Small, untouched

IMAGE = torch.rand(2, 3, 8, 8)


class Fails(Small):
    def forward(self, x: Tensor) -> Any:
        raise ValueError("no anchors for this image")


class Silent(Small):
    def forward(self, x: Tensor) -> Any:
        super().forward(x)
        return {"count": 3, "names": ["cat"]}


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Locked(Small):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def small(kind: Callable[[], nn.Module] = Small) -> nn.Module:
    return kind().eval()


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval())  # type: ignore[no-any-return]


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}, dtype=torch.qint8)
    return net


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return small()


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def without_size() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


@dataclass(frozen=True)
class Case:
    """One mistake, and what its error has to say."""

    error: type[EffpError]
    says: tuple[str, ...]
    model: Callable[[], Any] = small
    inputs: Any = IMAGE
    options: tuple[tuple[str, Any], ...] = ()


def case(
    error: type[EffpError], *says: str, model: Callable[[], Any] = small, inputs: Any = IMAGE, **options: Any
) -> Case:
    return Case(error, says, model, inputs, tuple(options.items()))


CASES = {
    "no parameters": case(CaptureError, "has no parameters", "Sequential", model=lambda: nn.Sequential(nn.ReLU())),
    "no parameters, no inputs": case(CaptureError, "has no parameters", model=nn.ReLU, inputs=None),
    "none inferable": case(
        InputError, "none can be inferred for Scale", "no convolution", "example_inputs=torch", model=Scale, inputs=None
    ),
    "inferred, but wrong": case(
        CaptureError,
        "Sequential failed on the example inputs",
        "inputs: float32[1, 3, 224, 224]",
        "these were inferred",
        "example_inputs=",
        model=without_size,
        inputs=None,
    ),
    "inputs without a tensor": case(InputError, "hold no tensor", "'image.jpg'", "example_inputs=", inputs="image.jpg"),
    "wrong channels": case(
        CaptureError,
        "Small failed",
        "untouched.py:",
        "to have 3 channels",
        "inputs: float32[2, 4, 8, 8]",
        "check that model(*example_inputs) runs",
        inputs=torch.rand(2, 4, 8, 8),
    ),
    "too few dimensions": case(CaptureError, "Expected 3D (unbatched) or 4D", "float32[3]", inputs=torch.rand(3)),
    "whole numbers": case(
        CaptureError, "no floating input (dtypes int64), parameters float32", inputs=torch.ones(1, 3, 8, 8).long()
    ),
    "double": case(
        CaptureError, "inputs of dtype float64, parameters of dtype float32", "dtype", inputs=IMAGE.double()
    ),
    "another device": case(
        InputError,
        "not on the device of the model",
        "inputs on meta, parameters on cpu",
        ".to(",
        inputs=IMAGE.to("meta"),
    ),
    "too many inputs": case(CaptureError, "takes 2 positional arguments but 3 were given", inputs=(IMAGE, IMAGE)),
    "unknown keyword": case(CaptureError, "unexpected keyword argument 'image'", inputs={"image": IMAGE}),
    "batch of zero": case(
        InputError, "an empty batch", "positional input 0", "(0, 3, 8, 8)", "one sample or more", inputs=IMAGE[:0]
    ),
    "fails in forward": case(
        CaptureError,
        "Fails failed",
        "test_bad_input.py:",
        "in forward",
        "ValueError: no anchors",
        model=lambda: small(Fails),
    ),
    "no tensor comes out": case(CaptureError, "output holds no tensor", "dict", "tensors", model=lambda: small(Silent)),
    "target 0": case(TargetError, "above 0", "target_flops", "seen: 0", "0.5", target_flops=0),
    "target below 0": case(TargetError, "above 0", "target_params", "seen: -0.5", target_params=-0.5),
    "target NaN": case(TargetError, "finite number", "target_flops", "seen: nan", target_flops=float("nan")),
    "target infinite": case(TargetError, "finite number", "seen: inf", "dense cost", target_flops=float("inf")),
    "target a word": case(TargetError, "must be a number", "seen: 'half'", target_flops="half"),
    "target true": case(TargetError, "must be a number", "seen: True", target_params=True),
    "above the dense cost": case(
        TargetError, "above the dense cost", "target_flops", "seen: 1,000,000,000", "0.5 keeps half", target_flops=1e9
    ),
    "unreachable": case(
        UnreachableTargetError,
        "flops cannot be brought down to",
        "smallest reachable is",
        "reaches the model's output",
        "in head",
        "ask for 0.0",
        target_flops=1e-3,
    ),
    "unreachable for what is ignored": case(
        UnreachableTargetError, "(100 %)", "ignored at the user's wish", "ask for 1.0 or more", ignore="*"
    ),
    "contradictory": case(
        TargetError,
        "contradict each other",
        "flops at 0.100",
        "params at 0.95",
        "leave params out",
        "at most",
        target_flops=0.1,
        target_params=0.95,
    ),
    "unknown name to ignore": case(
        NameNotFoundError,
        "'secnd'",
        "not in the model",
        "such as second",
        "glob over such names",
        ignore=["first", "secnd"],
    ),
    "a module of another model": case(NameNotFoundError, "ignore names a Linear", ignore=[nn.Linear(2, 2)]),
    "no name at all": case(NameNotFoundError, "ignore names 3", "the name of one", ignore=[3]),
    "neither names nor modules": case(NameNotFoundError, "ignore names 3", ignore=3),
    "round_to 0": case(TargetError, "whole number of channels", "seen: 0", "8, 16", round_to=0),
    "round_to a half": case(TargetError, "whole number of channels", "seen: 0.5", round_to=0.5),
    "unknown importance": case(NameNotFoundError, "'gama'", "gamma, l1, l2", importance="gama"),
    "no importance": case(EffpError, "importance must be a name", "seen: 3", importance=3),
    "importance NaN": case(
        EffpError, "not finite", "group ", "NaN", importance=lambda analysis, _: [float("nan")] * analysis.channels
    ),
    "no groups file": case(GroupFileError, "cannot be read", "nowhere.yaml", "--emit", groups="nowhere.yaml"),
    "no batch to calibrate on": case(InputError, "no batch", "a loader or a list", calibration=[], inplace=True),
    "a batch that fails": case(
        InputError,
        "failed on a batch",
        "batch 1 of calibration",
        "to have 3 channels",
        calibration=[IMAGE, torch.rand(2, 5, 8, 8)],
        inplace=True,
    ),
    "scripted": case(CaptureError, "a scripted module", "the eager module", model=scripted),
    "scripted inside": case(
        CaptureError, "a scripted module", "0 (RecursiveScriptModule)", model=lambda: nn.Sequential(scripted())
    ),
    "quantised": case(
        CaptureError, "a quantised module", "head (Linear)", "prune the float model first", model=quantised
    ),
    "lazy": case(CaptureError, "a lazy parameter", "0.weight", "run the model once", model=lazy),
    "lazy, no inputs": case(CaptureError, "a lazy parameter", "0.weight", model=lazy, inputs=None),
    "on meta": case(CaptureError, "on the meta device", "first.weight", "to_empty", model=on_meta),
    "compiled": case(CaptureError, "a compiled module", "model._orig_mod", model=lambda: torch.compile(small())),
    "in DataParallel": case(CaptureError, "several devices", "model.module", model=lambda: nn.DataParallel(small())),
    "cannot be copied": case(
        CaptureError, "Locked cannot be copied", "lock", "copy.deepcopy", "open files", model=lambda: small(Locked)
    ),
    "a name": case(CaptureError, "not a model", "str", "torch.nn.Module", model=lambda: "resnet18"),
    "a class": case(CaptureError, "not a model", "type", "torch.nn.Module", model=lambda: Small),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_explained_and_changes_nothing(name: str) -> None:
    wrong = CASES[name]
    model = wrong.model()
    options = {"target_flops": 0.5, "target_params": None} | dict(wrong.options)
    if "target_params" in dict(wrong.options) and "target_flops" not in dict(wrong.options):
        options["target_flops"] = None
    with untouched(model, wrong.inputs), pytest.raises(EffpError) as caught:
        effp_fx.prune(model, wrong.inputs, **options)
    assert type(caught.value) is wrong.error, repr(caught.value)
    missing = [part for part in wrong.says if part not in str(caught.value)]
    assert not missing, f"{missing} not in\n{caught.value}"


@pytest.mark.parametrize("inplace", [False, True])
def test_a_plan_for_another_model(inplace: bool) -> None:
    plan = effp_fx.plan_of(effp_fx.prune(small(), IMAGE))
    for other, says in (
        (NoNorm(), "norm.bias: missing in the model"),
        (Small(16), "first.weight: (16, 3, 3, 3) in the model"),
    ):
        with untouched(other), pytest.raises(PlanMismatchError, match="another model") as caught:
            binding.apply(other, plan, inplace=inplace)
        assert says in str(caught.value)
        assert "give the dense model" in str(caught.value)


def test_a_plan_that_was_applied_already() -> None:
    compact = effp_fx.prune(small(), IMAGE)
    with untouched(compact), pytest.raises(PlanMismatchError, match="pruned already: give the dense one"):
        binding.apply(compact, effp_fx.plan_of(compact))
