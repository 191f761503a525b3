"""`prune` from end to end on a classifier and two detectors: targets, options, what one can do with the result."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning
import torchvision
from torch import nn

import effp_fx
from effp_fx import api, binding, group_file, models
from effp_fx.capture import tensors_of
from effp_fx.models.randomise import randomise
from tests.untouched import untouched

IMAGES = torch.rand(2, 3, 64, 64)


def resnet() -> nn.Module:
    return randomise(torchvision.models.resnet18(num_classes=10)).eval()


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """One ResNet-18 for all tests that must not change it."""
    torch.manual_seed(0)
    return resnet()


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """Blocks with sums, for what needs no real network."""
    torch.manual_seed(0)
    return randomise(models.build("effp:residual?width=32").model)


@pytest.fixture(scope="module")
def compact(dense: nn.Module) -> nn.Module:
    """Half of it."""
    return effp_fx.prune(dense, IMAGES[:1])


# -- targets


@pytest.mark.slow
def test_half_of_ssd_from_above_within_a_channel() -> None:
    model = randomise(models.build("torchvision:ssd300_vgg16?num_classes=3").model)
    image = [torch.rand(3, 32, 32)]
    with untouched(model):
        result = api.prune_reported(model, (image,), target_flops=0.5, target_params=0.5)
    assert type(result.model) is type(model)
    assert 0.5 * result.flops_before - result.flops_after >= 0
    assert result.params_after <= 0.5 * result.params_before
    assert result.verification.equal
    assert set(result.model(image)[0]) == {"boxes", "scores", "labels"}


@pytest.mark.ultralytics
def test_half_of_a_yolo_trains_on() -> None:
    pytest.importorskip("ultralytics")
    model = randomise(models.build("ultralytics:yolov8n.yaml").model)
    with untouched(model):
        result = api.prune_reported(model, IMAGES[:1], target_flops=0.5)
    assert 0 <= 0.5 * result.flops_before - result.flops_after <= result.one_channel_flops
    assert (type(result.model), list(result.model.state_dict())) == (type(model), list(model.state_dict()))
    assert_trains(result.model)


@pytest.mark.parametrize("target", [0.3, 0.75, 150e6])
def test_a_target_is_met_from_above_within_a_channel(tiny: nn.Module, target: float) -> None:
    result = api.prune_reported(tiny, IMAGES, target_flops=target)
    wanted = target if target > 1 else target * result.flops_before
    assert 0 <= wanted - result.flops_after <= result.one_channel_flops
    assert effp_fx.plan_of(result.model).summary["flops_after"] == round(result.flops_after)


def test_two_targets_are_both_met(dense: nn.Module) -> None:
    result = api.prune_reported(dense, IMAGES[:1], target_flops=0.5, target_params=0.4)
    assert 0.48 < result.flops_after / result.flops_before <= 0.5
    assert 0.38 < result.params_after / result.params_before <= 0.4


def test_channels_come_in_eights(tiny: nn.Module) -> None:
    result = api.prune_reported(tiny, IMAGES, round_to=8)
    assert all(len(group.kept) % 8 == 0 for group in result.plan.groups.values())
    assert result.flops_after <= 0.5 * result.flops_before


def test_what_is_ignored_keeps_its_channels(tiny: nn.Module) -> None:
    small = effp_fx.prune(tiny, IMAGES, ignore=["inner.0.*", tiny.outer[0]], target_flops=0.7)
    kept = dict(small.named_parameters())
    for name, parameter in tiny.named_parameters():
        if name.startswith(("inner.0.", "outer.0.")):
            assert kept[name].shape[0] == parameter.shape[0], name
    assert small.stem[0].out_channels < 32


def test_the_groups_file_is_obeyed(tiny: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "groups.yaml"
    text = group_file.emit(effp_fx.trace(tiny, IMAGES).analysis)
    rules = {
        "stem.0": "pin: true",
        "outer.1.0": "multiple_of: 16",
        "inner.0.0": "smallest_kept: 40",
    }
    for name, rule in rules.items():
        assert f"  {name}:\n" in text
        text = text.replace(f"  {name}:\n", f"  {name}:\n    {rule}\n")
    file.write_text(text)
    small = effp_fx.prune(tiny, IMAGES, groups=file, target_flops=0.7)
    assert small.stem[0].out_channels == 32
    assert small.outer[1][0].out_channels % 16 == 0
    assert small.inner[0][0].out_channels >= 40
    assert small.outer[0][0].out_channels < 32
    file.write_text(text.replace("  inner.0.0:\n", "  inner.0.0:\n    tie: outer.1.0\n"))
    kept = effp_fx.plan_of(effp_fx.prune(tiny, IMAGES, groups=file, target_flops=0.7)).tensors
    assert kept["inner.0.0.weight"].keep.get(0) == kept["outer.1.0.weight"].keep.get(0)


# -- importance, calibration, in place


def test_importances_choose_different_channels(tiny: nn.Module) -> None:
    def last_first(analysis: Any, tensors: Any) -> Any:
        return np.arange(analysis.channels, dtype=np.float64) + 1

    given = ["gamma", "l1", "random", last_first, torch_pruning.importance.MagnitudeImportance(p=2)]
    plans = [effp_fx.plan_of(effp_fx.prune(tiny, IMAGES, importance=one)).groups for one in given]
    assert len({str(groups) for groups in plans}) == len(given)
    for group in plans[3].values():
        assert group.kept == tuple(range(group.channels - len(group.kept), group.channels))


def test_a_torch_pruning_importance_that_needs_gradients(tiny: nn.Module) -> None:
    model = copy.deepcopy(tiny)
    model(IMAGES).square().sum().backward()
    with untouched(model):
        small = effp_fx.prune(model, IMAGES, importance=torch_pruning.importance.TaylorImportance())
    assert small.inner[0][0].out_channels < 64


def test_batch_norms_are_estimated_anew_on_the_batches_given(tiny: nn.Module) -> None:
    batches = [(IMAGES + shift, torch.zeros(2)) for shift in (0.0, 0.5)]
    small = effp_fx.prune(tiny, IMAGES, calibration=batches)
    values = torch.cat([small.stem[0](images).detach() for images, _ in batches]).movedim(1, 0).flatten(1)
    torch.testing.assert_close(small.stem[1].running_mean, values.mean(1))
    assert not small.training


def test_in_place_the_objects_stay_and_the_optimizer_goes_on(compact: nn.Module) -> None:
    torch.manual_seed(0)
    model = resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IMAGES).square().sum().backward()
    before = {name: (parameter, parameter.grad.clone()) for name, parameter in model.named_parameters()}
    assert effp_fx.prune(model, IMAGES[:1], inplace=True) is model
    for name, parameter in model.named_parameters():
        old, gradient = before[name]
        assert parameter is old
        for dim, kept in effp_fx.plan_of(model).tensors[name].keep.items():
            gradient = gradient.index_select(dim, torch.tensor(kept))
        assert torch.equal(parameter.grad, gradient)
    assert torch.equal(model(IMAGES), compact(IMAGES))
    weight = model.conv1.weight.clone()
    optimizer.step()
    torch.testing.assert_close(model.conv1.weight, weight - 0.1 * model.conv1.weight.grad)


def test_in_place_and_calibrated_is_the_calibrated_copy(tiny: nn.Module) -> None:
    model = copy.deepcopy(tiny)
    copied = effp_fx.prune(tiny, IMAGES, calibration=[IMAGES])
    effp_fx.prune(model, IMAGES, calibration=[IMAGES], inplace=True)
    assert torch.equal(model(IMAGES), copied(IMAGES))


# -- what comes back


def assert_trains(model: nn.Module) -> None:
    """Forward, loss, backward, step in train mode: every parameter gets a gradient and moves by it."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loss = torch.stack([value.square().mean() for value in tensors_of(model(IMAGES))[0]]).sum()
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {name: parameter.detach() - 1e-4 * parameter.grad for name, parameter in trained.items()}
    optimizer.step()
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.detach(), expected[name])
    assert all(bool(value.isfinite().all()) for value in tensors_of(model(IMAGES))[0])


def test_the_input_is_as_it_was(tiny: nn.Module) -> None:
    model = copy.deepcopy(tiny).train()
    model.inner.eval()
    model.stem[0].weight.requires_grad_(False)
    model(IMAGES).square().sum().backward()
    model.note = {"run": 3}
    with untouched(model, IMAGES):
        small = effp_fx.prune(model, IMAGES, calibration=[IMAGES])
        print(effp_fx.trace(model, IMAGES))
        effp_fx.verify(model, model, IMAGES)
    assert small.training
    assert not small.inner.training
    assert not small.stem[0].weight.requires_grad


def test_images_that_the_model_writes_to_are_as_they_were() -> None:
    class Scaling(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.div_(255.0))

    model = Scaling(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    image = torch.rand(1, 3, 16, 16)
    with untouched(model, image):
        effp_fx.trace(model, image)
        small = effp_fx.prune(model, image)
        effp_fx.verify(model, small, image)


def test_same_class_same_keys_and_it_trains(dense: nn.Module, compact: nn.Module) -> None:
    assert type(compact) is type(dense)
    assert list(compact.state_dict()) == list(dense.state_dict())
    assert compact.layer1[0].conv1.in_channels == compact.layer1[0].conv1.weight.shape[1]
    assert compact.bn1.num_features == len(compact.bn1.weight)
    assert_trains(compact)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles(compact: nn.Module, backend: str) -> None:
    with torch.no_grad():
        compiled = torch.compile(compact.layer1, backend=backend)
        features = torch.rand(1, compact.layer1[0].conv1.in_channels, 8, 8)
        torch.testing.assert_close(compiled(features), compact.layer1(features))


def test_it_is_copied_and_pickled_without_us(compact: nn.Module, tmp_path: Path) -> None:
    twin = copy.deepcopy(compact)
    assert torch.equal(twin(IMAGES), compact(IMAGES))
    assert effp_fx.plan_of(twin) == effp_fx.plan_of(compact)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps((compact, IMAGES, compact(IMAGES).detach())))
    code = (
        "import pickle, sys, torch; torch.set_num_threads(1)\n"
        f"model, images, outputs = pickle.loads(open({str(tmp_path / 'model.pkl')!r}, 'rb').read())\n"
        "assert torch.equal(model(images), outputs) and type(model.effp_plan) is str\n"
        "assert not any(name.startswith('effp_fx') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_saved_and_loaded(dense: nn.Module, compact: nn.Module, tmp_path: Path) -> None:
    file = effp_fx.save(compact, tmp_path / "small.safetensors")
    with untouched(dense):
        loaded = effp_fx.load(file, dense)
    assert torch.equal(loaded(IMAGES), compact(IMAGES))
    assert effp_fx.plan_of(loaded) == effp_fx.plan_of(compact)


def test_pruned_twice_the_plans_compose(dense: nn.Module, compact: nn.Module) -> None:
    twice = effp_fx.prune(compact, IMAGES[:1], target_params=0.5)
    summary = effp_fx.plan_of(twice).summary
    assert summary["params_before"] == sum(parameter.numel() for parameter in dense.parameters())
    assert int(summary["params_after"]) == sum(parameter.numel() for parameter in twice.parameters())
    assert torch.equal(binding.apply(dense, effp_fx.plan_of(twice))(IMAGES), twice(IMAGES))


def test_verify_tells_a_wrong_model_from_a_right_one(tiny: nn.Module) -> None:
    wrong = copy.deepcopy(tiny)
    with torch.no_grad():
        wrong.stem[1].bias[3] += 1e-3
    assert effp_fx.verify(tiny, copy.deepcopy(tiny), IMAGES).equal
    check = effp_fx.verify(tiny, wrong, IMAGES)
    assert not check.equal
    assert check.max_relative_error > 1e-7


def test_a_file_frees_what_ignore_pins_and_ties_add_up_bounds(tiny: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "groups.yaml"
    file.write_text("groups:\n  outer.0.0:\n    free: true\n")
    small = effp_fx.prune(tiny, IMAGES, ignore=["stem*", "outer.0*"], groups=file, target_flops=0.6)
    assert small.stem[0].out_channels == 32
    assert small.outer[0][0].out_channels < 32
    bounds = "  inner.0.0:\n    multiple_of: 12\n    tie: outer.1.0\n  outer.1.0:\n    smallest_kept: 50\n"
    file.write_text(f"groups:\n{bounds}")
    tied = effp_fx.trace(tiny, IMAGES, groups=file).groups
    assert [(group.min_kept, group.multiple_of) for group in tied if group.channels == 64] == [(50, 12)]
    assert effp_fx.prune(tiny, IMAGES, groups=file).inner[0][0].out_channels % 12 == 0
