"""The trainer's parts: recipe, loop, divergence, checkpoints, moving average, judging, charts."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from effp_fx import models
from effp_fx.data import as_it_is, loader, open_dataset, write_scenes
from effp_fx.errors import DivergenceError, FileFormatError, PlanMismatchError, TrainingError
from effp_fx.evaluate.detection import DetectionEvaluator
from effp_fx.report.line_chart import line_chart
from effp_fx.train import Loop, Recipe, Task, checkpoint, judge, moving_average
from effp_fx.train.multi_scale import scaled_batches
from effp_fx.train.starting_weights import load_weights
from effp_fx.train.task import own_size, with_classes

SPEC = "effp:ssd_small?size=64&width=8"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(folder, images=12, val_images=8, test_images=0, size=64, difficulty=0.2, most=3)


def batches(scenes: Path, split: str = "train", size: int = 6) -> Any:
    return loader(open_dataset(scenes, split, transforms=as_it_is()), size)


def loop_over(model: nn.Module, steps: int = 20, **options: Any) -> Loop:
    recipe = Recipe(optimizer="adamw", lr=2e-3, warmup=0)
    return Loop(model, recipe.build_optimizer(model), recipe, steps, **options)


def test_the_rate_warms_up_and_falls_on_a_cosine() -> None:
    recipe = Recipe(warmup=100, last_lr=0.01)
    assert recipe.rate(49, 2000) == pytest.approx(50 / 101) and recipe.rate(100, 2000) == 1.0
    rates = [recipe.rate(step, 100) for step in range(100)]  # a short run warms up in a tenth of its steps
    assert rates[0] == pytest.approx(1 / 11) and rates[9] == pytest.approx(10 / 11)
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.01 + 0.99 / 2)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    decayed, plain = Recipe(weight_decay=0.1).build_optimizer(model).param_groups
    assert decayed["weight_decay"] == 0.1 and [value.ndim for value in decayed["params"]] == [4]
    assert plain["weight_decay"] == 0.0 and len(plain["params"]) == 3


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("lr", float("nan")), ("optimizer", "lion"), ("ema", 1.0), ("clip", 0.0)]
)
def test_a_recipe_refuses_what_makes_no_sense(name: str, value: Any) -> None:
    with pytest.raises(TrainingError, match=f"no training with this {name}"):
        Recipe(**{name: value})


def test_a_task_refuses_a_dense_run_with_a_target() -> None:
    with pytest.raises(TrainingError, match="a dense run has no target"):
        Task(SPEC, "data", Path("out"), dense=True, target_flops=0.5)


@pytest.mark.parametrize("amp", [False, True])
def test_the_loop_makes_the_loss_fall(scenes: Path, amp: bool) -> None:
    loop = loop_over(models.build(SPEC).model, amp=amp)
    seen: list[float] = []
    for _ in range(5):
        loop.epoch(batches(scenes), lambda losses: seen.append(sum(losses.values())))
    assert loop.step == len(seen) == 10
    assert sum(seen[-2:]) < 0.8 * sum(seen[:2])


def test_a_layer_that_diverges_is_named_and_its_step_not_taken(scenes: Path) -> None:
    model = models.build(SPEC).model
    with torch.no_grad():
        model.get_parameter("backbone.stages.1.0.0.weight")[0] = float("inf")
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    with pytest.raises(DivergenceError, match="a loss is not finite") as caught:
        loop_over(model).epoch(batches(scenes))
    assert caught.value.where == "backbone.stages.1.0.0"
    assert "in step 1; the step was not taken" in str(caught.value)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "batches" not in name)


def test_an_image_that_is_not_finite_is_named(scenes: Path) -> None:
    images, targets = next(iter(batches(scenes)))
    images[2][0, 0, 0] = float("nan")
    with pytest.raises(DivergenceError) as caught:
        loop_over(models.build(SPEC).model).epoch([(images, targets)])
    assert caught.value.where == f"image of image {targets[2]['image_id']}"


def test_a_gradient_that_is_not_finite_is_named() -> None:
    class Root(nn.Module):
        """Its loss is finite at 0, the gradient of it is not."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 1, bias=False)
            nn.init.zeros_(self.head.weight)

        def forward(self, images: list[torch.Tensor], _: Any) -> dict[str, torch.Tensor]:
            return {"root": self.head(images[0]).sum().sqrt()}

    with pytest.raises(DivergenceError, match="a gradient is not finite") as caught:
        loop_over(Root()).take([torch.ones(2)], [{"boxes": torch.zeros(0, 4)}])
    assert caught.value.where == "head.weight"


def test_a_model_without_losses_is_refused() -> None:
    class Plain(nn.Module):
        """Returns a tensor in training too."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, images: list[torch.Tensor], _: Any) -> torch.Tensor:
            return self.layer(images[0])

    with pytest.raises(TrainingError, match="the model returns no losses in training"):
        loop_over(Plain()).take([torch.ones(2)], [{"boxes": torch.zeros(0, 4)}])


def test_a_young_average_forgets_faster() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = moving_average(model, 0.5)
    average.update_parameters(model)  # the first is a copy
    nn.init.ones_(model.weight)
    average.update_parameters(model)
    assert float(average.module.weight.detach()) == pytest.approx(1 - 2 / 11)
    for _ in range(20):
        average.update_parameters(model)
    before = float(average.module.weight.detach())
    nn.init.zeros_(model.weight)
    average.update_parameters(model)
    assert float(average.module.weight.detach()) == pytest.approx(before * 0.5)


def test_other_sizes_are_drawn_and_the_own_one_comes_back() -> None:
    model = models.build(SPEC).model
    sizes = [model.transform.fixed_size for _ in scaled_batches([(), ()] * 8, model, 0.5, seed=1)]  # type: ignore[union-attr,list-item]
    assert {(32, 32), (64, 64), (96, 96)} == set(sizes)
    assert own_size(model) == 64


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    tied = torch.arange(6.0).reshape(2, 3)
    state = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 12: {"avg": tied}}, "betas": (0.9, 0.999)},
        "again": [tied, None, True, float("inf"), "tensor", ["tensor", "x"]],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "empty": {},
    }
    back = checkpoint.read(checkpoint.write(tmp_path / "last.safetensors", state))
    assert str(back) == str(state)
    assert torch.equal(back["optimizer"]["state"][12]["avg"], tied)


def test_a_checkpoint_takes_no_objects_and_reads_no_other_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="a checkpoint cannot hold this") as caught:
        checkpoint.write(tmp_path / "last.safetensors", {"a": {"b": object()}})
    assert caught.value.where == "a/b" and not list(tmp_path.iterdir())
    from effp_fx import weights_file

    other = weights_file.write(tmp_path / "other.safetensors", {"w": torch.ones(1)}, {})
    with pytest.raises(FileFormatError, match="this is not a checkpoint of this effp_fx"):
        checkpoint.read(other)


def test_weights_of_another_model_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    model, other = models.build(SPEC).model, models.build("effp:ssd_small?size=64&width=16").model
    path = checkpoint.write(tmp_path / "last.safetensors", {"model": dict(other.state_dict())})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PlanMismatchError, match="the weights in the file are not for this SSDSmall"):
        load_weights(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    twin = models.build("effp:ssd_small?size=64&width=16").model
    load_weights(twin, path)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in twin.state_dict().items())


def test_the_number_of_classes_is_added_where_a_family_takes_one() -> None:
    assert with_classes("effp:ssd_small", 3) == "effp:ssd_small?num_classes=4"
    assert with_classes("torchvision:fcos_resnet50_fpn?min_size=320", 3).endswith("?min_size=320&num_classes=4")
    assert with_classes("effp:ssd_small?num_classes=9", 3) == "effp:ssd_small?num_classes=9"
    assert with_classes("net.py:build", 3) == "net.py:build"


def test_judging_in_parts_is_judging_at_once(scenes: Path) -> None:
    model = models.build(SPEC).model
    whole = judge(model, batches(scenes, "val"), open_dataset(scenes, "val").classes)
    assert whole.images == 8 and not model.training
    parts = [DetectionEvaluator(open_dataset(scenes, "val").classes) for _ in range(2)]
    with torch.inference_mode():
        for number, (images, targets) in enumerate(batches(scenes, "val", 4)):
            parts[number].update(model(images), targets)
    parts[0].merge(parts[1])
    assert str(parts[0].compute()) == str(whole)  # NaN of sizes that do not occur is not equal to itself


def test_a_chart_is_well_formed_and_shows_every_finite_point() -> None:
    points = [(0.0, 1.0), (5.0, float("nan")), (10.0, 3.0)]
    picture = line_chart("a < b", {"one & two": points}, across="step", levels={"target": 0.5})
    tree = ElementTree.fromstring(picture)
    titles = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["one & two: 3"] and "nan" not in picture
    assert picture.count("stroke-dasharray") == 1
