"""Tests of our detectors: interface, default boxes, known figures, learning, pruning, and training what was pruned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

import effp_fx
from effp_fx.errors import ModelNameError
from effp_fx.models import Built, adapter_for, build
from effp_fx.models.ssd300 import COCO_SCALES, SSD300
from effp_fx.models.yolo_loss import assign

SMALL = ["effp:ssd_small?num_classes=5&width=8&size=64", "effp:yolo_small?num_classes=5&width=8&size=64"]
SSD300S = ["effp:ssd300_vgg16_bn", "effp:ssd300_resnet50"]


def seeded(spec: str) -> Built:
    torch.manual_seed(0)
    return build(spec)


def batch(size: int, count: int = 4) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Grey noise with bright squares, whose colour is their class."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, size, size, generator=generator) * 0.2
    targets = []
    for i, image in enumerate(images):
        side = size // 4 + 4 * i
        label = 1 + i % 3
        image[label - 1, 8 : 8 + side, 16 : 16 + side] = 1.0
        boxes = torch.tensor([[16.0, 8.0, 16.0 + side, 8.0 + side]])
        targets.append({"boxes": boxes, "labels": torch.tensor([label])})
    return list(images), targets


def losses(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = model(*inputs)
    return terms


def learn(model: nn.Module, inputs: Any, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    model.train()
    seen = []
    for _ in range(steps):
        loss = torch.stack(list(losses(model, inputs).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        seen.append(float(loss.detach()))
    return seen


def macs(model: nn.Module, images: list[Tensor]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("spec", SMALL)
def test_the_interface_is_that_of_torchvision(spec: str) -> None:
    model = seeded(spec).model
    images, targets = batch(64)
    before = copy.deepcopy(targets)
    found = model([images[0], torch.rand(3, 50, 90)])  # another size: resized, boxes come back in its own pixels
    assert [set(each) for each in found] == [{"boxes", "scores", "labels"}] * 2
    boxes, labels = found[1]["boxes"], found[1]["labels"]
    assert len(boxes) and boxes.shape[1] == 4 and (boxes[:, 2:] >= boxes[:, :2]).all()
    assert boxes[:, 2].max() <= 90 and boxes[:, 3].max() <= 50 and labels.min() >= 1 and labels.max() <= 4
    assert (found[1]["scores"].diff() <= 0).all()
    terms = losses(model.train(), (images, targets))
    assert {"bbox_regression", "classification"} <= set(terms)
    assert all(term.ndim == 0 and term.isfinite() and term.requires_grad for term in terms.values())
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, before, strict=True))


@pytest.mark.parametrize("spec", SMALL)
def test_images_without_objects_are_all_background(spec: str) -> None:
    model = seeded(spec).model.train()
    images, targets = batch(64)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    for given in ([targets[0], empty, *targets[2:]], [empty] * 4):
        terms = losses(model, (images, given))
        assert all(term.isfinite() for term in terms.values())
        torch.stack(list(terms.values())).sum().backward()
    assert float(terms["bbox_regression"].detach()) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("spec", SMALL)
def test_one_batch_is_learnt_and_then_found(spec: str) -> None:
    model = seeded(spec).model
    images, targets = batch(64)
    seen = learn(model, (images, targets), 60)
    assert seen[-1] < 0.3 * seen[0]
    for _ in range(20):  # statistics of the norms catch up with weights that no longer change
        with torch.no_grad():
            model(images, targets)
    with torch.no_grad():
        found = model.eval()(images)
    for each, target in zip(found, targets, strict=True):
        assert int(each["labels"][0]) == int(target["labels"][0])
        assert float(box_iou(each["boxes"][:1], target["boxes"])) > 0.5


@pytest.mark.parametrize("spec", SMALL)
def test_the_same_seed_gives_the_same_run(spec: str) -> None:
    runs = []
    for _ in range(2):
        model = seeded(spec).model
        runs.append((learn(model, batch(64), 3), model.eval()(batch(64)[0])))
    (losses_a, found_a), (losses_b, found_b) = runs
    assert losses_a == losses_b
    assert all(torch.equal(a[key], b[key]) for a, b in zip(found_a, found_b, strict=True) for key in a)


@pytest.mark.parametrize("spec", SMALL)
def test_half_the_flops_go_and_what_is_left_trains(spec: str) -> None:
    built = seeded(spec)
    (images,) = built.example().args
    learn(built.model, batch(64), 2)
    small = effp_fx.prune(built.model.eval(), target_flops=0.5)
    assert 0.48 < macs(small, images) / macs(built.model, images) <= 0.5
    seen = learn(small, batch(64), 12)
    assert seen[-1] < seen[0]
    assert adapter_for(small) is built.adapter


def test_images_of_the_right_size_are_only_normalised() -> None:
    transform = build("effp:ssd_small?size=96").model.get_submodule("transform")
    images, targets = batch(96)
    fast, same = transform(images, targets)
    slow, _ = super(type(transform), transform).forward(images, targets)  # type: ignore[misc]  # the way of torchvision
    assert torch.allclose(fast.tensors, slow.tensors, atol=1e-6) and fast.image_sizes == slow.image_sizes
    assert same is targets


def default_boxes(model: nn.Module, maps: list[int], size: int = 300) -> Tensor:
    features = [torch.zeros(1, 1, side, side) for side in maps]
    images = ImageList(torch.zeros(1, 3, size, size), [(size, size)])
    boxes: Tensor = model.get_submodule("anchor_generator")(images, features)[0]
    return boxes


def test_default_boxes_are_those_of_the_paper() -> None:
    model = build("effp:ssd300_resnet50").model
    boxes = default_boxes(model, [38, 19, 10, 5, 3, 1])
    assert len(boxes) == 8732
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    assert [round(float(side)) for side in sides[:2]] == [30, 42]  # 0.1 of the image, and the mean with 0.2
    assert torch.allclose(boxes[0].mean(), torch.tensor(4.0))  # the first centre: half a step of 8 pixels
    coco = build(f"effp:ssd300_resnet50?scales={','.join(map(str, COCO_SCALES))}").model
    assert float(default_boxes(coco, [38, 19, 10, 5, 3, 1])[0, ::2].diff()) == pytest.approx(21)


# torchvision's ssd300_vgg16 with 21 classes: 26,285,486 parameters, 31.3735 GMACs. A batch norm adds two parameters a
# channel and no MACs; fc6, fc7 and the extras lose their biases.
VGG_NORMS = 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)
EXTRAS = 2 * 1024 + (256 + 512) + 3 * (128 + 256)


def test_figures_of_ssd300_vgg16_bn() -> None:
    model = seeded("effp:ssd300_vgg16_bn").model
    assert sum(p.numel() for p in model.parameters()) == 26_285_486 + VGG_NORMS + 2 * EXTRAS - EXTRAS
    (images,) = adapter_example(model)
    assert macs(model, images) == 31_373_537_792
    assert all(isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d) for m in leaves(model, "backbone"))
    assert float(model.get_parameter("backbone.scale_weight").detach().mean()) == 20


def test_figures_of_ssd300_resnet50() -> None:
    model = seeded("effp:ssd300_resnet50").model
    maps = model.get_submodule("backbone")(torch.rand(1, 3, 300, 300))
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (c, s, s) for c, s in zip((1024, 512, 512, 256, 256, 256), (38, 19, 10, 5, 3, 1), strict=True)
    ]
    # ResNet-50 has 25,557,032 parameters, of which 14,964,736 are conv5_x and 2,049,000 the classifier.
    body = 25_557_032 - 14_964_736 - 2_049_000
    ends = zip((1024, 512, 512, 256, 256), (256, 256, 128, 128, 128), (512, 512, 256, 256, 256), strict=True)
    extras = sum(i * h + 9 * h * o + 2 * (h + o) for i, h, o in ends)
    boxes = zip((1024, 512, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), strict=True)
    heads = sum((9 * c + 1) * n * (21 + 4) for c, n in boxes)
    assert sum(p.numel() for p in model.parameters()) == body + extras + heads


def adapter_example(model: nn.Module) -> tuple[Any, ...]:
    adapter = adapter_for(model)
    assert adapter is not None and adapter.name == "effp"
    return adapter.example(model).args


def leaves(model: nn.Module, path: str) -> list[nn.Module]:
    return [m for m in model.get_submodule(path).modules() if not list(m.children())]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("spec", SSD300S)
def test_ssd300_is_pruned_to_half_and_trains(spec: str) -> None:
    built = seeded(spec)
    assert isinstance(built.model, SSD300)
    (images,) = built.example().args
    small = effp_fx.prune(built.model, target_flops=0.5)
    assert 0.49 < macs(small, images) / macs(built.model, images) <= 0.5
    assert built.adapter is not None
    inputs = built.adapter.train_example(small)
    assert inputs is not None
    torch.stack(list(losses(small.train(), inputs.args).values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())


def test_assignment_by_hand() -> None:
    points = torch.tensor([[2.0, 2.0], [6.0, 2.0], [10.0, 2.0]])
    true = torch.tensor([[[0.0, 0.0, 8.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])  # one object, and padding
    labels = torch.tensor([[2, 0]])
    predicted = torch.tensor([[[0.0, 0.0, 8.0, 4.0], [0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 8.0, 4.0]]])
    scores = torch.full((1, 3, 2), 0.25)
    owner, quality = assign(predicted, scores, points, true, labels)
    assert owner[0, :2].tolist() == [0, 0]
    # The perfect box scores its IoU of 1; half of the box has alignment 0.5^6 of the best; outside there is nothing.
    assert torch.allclose(quality[0], torch.tensor([1.0, 0.5**6, 0.0]))


def test_a_point_that_two_objects_want_learns_the_one_it_overlaps_most() -> None:
    points = torch.tensor([[4.0, 4.0]])
    true = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 16.0, 16.0]]])
    predicted = torch.tensor([[[0.0, 0.0, 15.0, 15.0]]])
    owner, quality = assign(predicted, torch.full((1, 1, 1), 0.5), points, true, torch.tensor([[1, 1]]))
    assert owner.tolist() == [[1]]
    assert torch.allclose(quality, torch.tensor([[225 / 256]]))


@pytest.mark.parametrize("option", ["size=100", "width=12", "depth=3"])
@pytest.mark.parametrize("name", ["ssd_small", "yolo_small"])
def test_wrong_options_are_named(name: str, option: str) -> None:
    with pytest.raises(ModelNameError, match="does not take these options"):
        build(f"effp:{name}?{option}")


def test_scales_of_the_wrong_number_and_missing_targets_are_refused() -> None:
    with pytest.raises(ModelNameError, match="scales must be 7 numbers, not 2"):
        build("effp:ssd300_resnet50?scales=0.1,0.2")
    with pytest.raises(ValueError, match="targets must be given in training"):
        build("effp:yolo_small").model.train()([torch.rand(3, 96, 96)])
