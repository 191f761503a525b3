"""mAP: by hand, against a second computation written from the definition, on the edge cases; and what is refused."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from effp_fx.errors import DataError
from effp_fx.evaluate.detection import DetectionEvaluator
from effp_fx.evaluate.voc_ap import Matched, area_under_curve, eleven_points

CLASSES = ("cat", "dog", "owl")


def output(boxes: Any, scores: Any, labels: Any) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def target(boxes: Any, labels: Any, image_id: int = 0, difficult: Any = None) -> dict[str, Any]:
    found = output(boxes, [], labels)
    marked = torch.tensor(difficult if difficult is not None else [False] * len(labels))
    return {"boxes": found["boxes"], "labels": found["labels"], "image_id": image_id, "difficult": marked}


def random_batch(images: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Detections of every quality: near, shifted, doubled, of the wrong class, of nothing."""
    random = np.random.default_rng(seed)
    outputs, targets = [], []
    for key in range(images):
        count = int(random.integers(0, 6))
        corner, side = random.uniform(0, 60, (count, 2)), random.uniform(6, 60, (count, 2))
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = random.integers(1, 4, count)
        targets.append(target(boxes, labels, key))
        again = np.concatenate([boxes, boxes[: count // 2]])
        near = again + random.normal(0, 1.5, again.shape)
        wrong = np.where(random.uniform(size=len(again)) < 0.15, 1, np.concatenate([labels, labels[: count // 2]]))
        stray = random.uniform([0, 0, 50, 50], [50, 50, 100, 100], (2, 4))
        found = np.concatenate([near, stray])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        scores = random.uniform(0.05, 1, len(found)).round(3)
        outputs.append(output(found, scores, np.concatenate([wrong, random.integers(1, 4, 2)])))
    return outputs, targets


# --- a second computation, from the definition: loops, no library ---


def iou(a: list[float], b: list[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def coco_choice(box: list[float], there: list[list[float]], free: list[bool], threshold: float) -> int | None:
    """COCO: the best of the objects that are free and overlap enough."""
    overlaps = [iou(box, other) if free[index] else -1.0 for index, other in enumerate(there)]
    best = max(range(len(there)), key=lambda index: overlaps[index], default=None)
    return best if best is not None and overlaps[best] >= threshold else None


def voc_choice(box: list[float], there: list[list[float]], free: list[bool], threshold: float) -> int | None:
    """VOC: the best of all objects, and nothing where that is not free."""
    best = max(range(len(there)), key=lambda index: iou(box, there[index]), default=None)
    return best if best is not None and iou(box, there[best]) >= threshold and free[best] else None


def curve(
    outputs: list[dict[str, Any]],
    targets: list[dict[str, Any]],
    label: int,
    threshold: float,
    choice: Callable[..., Any],
) -> list[tuple[float, float]]:
    """(recall, precision) after each detection."""
    there = [
        [b for b, of in zip(t["boxes"].tolist(), t["labels"].tolist(), strict=True) if of == label] for t in targets
    ]
    free = [[True] * len(boxes) for boxes in there]
    ranked = [
        (-score, image, box)
        for image, one in enumerate(outputs)
        for box, score, of in zip(one["boxes"].tolist(), one["scores"].tolist(), one["labels"].tolist(), strict=True)
        if of == label
    ]
    points, hits = [], 0
    for number, (_, image, box) in enumerate(sorted(ranked, key=lambda row: row[0]), start=1):
        chosen = choice(box, there[image], free[image], threshold)
        if chosen is not None:
            free[image][chosen] = False
            hits += 1
        points.append((hits / sum(map(len, there)), hits / number))
    return points


def mean_at(points: list[tuple[float, float]], recalls: list[float]) -> float:
    return sum(max((p for r, p in points if r >= recall), default=0.0) for recall in recalls) / len(recalls)


def staircase(points: list[tuple[float, float]]) -> float:
    area, last = 0.0, 0.0
    for recall, _ in points:
        area += (recall - last) * max(p for r, p in points if r >= recall)
        last = recall
    return area


@pytest.mark.parametrize("seed", [1, 2])
def test_all_four_measures_agree_with_a_computation_from_their_definition(seed: int) -> None:
    outputs, targets = random_batch(25, seed)
    evaluator = DetectionEvaluator(CLASSES)
    evaluator.update(outputs[:10], targets[:10])
    evaluator.update(outputs[10:], targets[10:])
    found = evaluator.compute()
    labels, thresholds = (1, 2, 3), [0.5 + 0.05 * step for step in range(10)]
    # The 101 points as COCO makes them, so that a recall that lies on one falls to the same side.
    fine, coarse = np.linspace(0, 1, 101).tolist(), [step / 10 for step in range(11)]
    coco = {
        (label, threshold): mean_at(curve(outputs, targets, label, threshold, coco_choice), fine)
        for label in labels
        for threshold in thresholds
    }
    voc = [curve(outputs, targets, label, 0.5, voc_choice) for label in labels]
    assert found.map == pytest.approx(np.mean(list(coco.values())), abs=1e-9)
    assert found.map50 == pytest.approx(np.mean([coco[label, 0.5] for label in labels]), abs=1e-9)
    assert found.per_class["dog"] == pytest.approx(np.mean([coco[2, at] for at in thresholds]), abs=1e-9)
    assert found.voc == pytest.approx(np.mean([staircase(points) for points in voc]), abs=1e-9)
    assert found.voc07 == pytest.approx(np.mean([mean_at(points, coarse) for points in voc]), abs=1e-9)
    assert 0.2 < found.map < found.map50 < 0.95 and found.voc != found.map50  # or it would prove little


def test_both_areas_under_a_curve_known_by_hand() -> None:
    matched = Matched(np.array([True, False, True, False]), objects=4)
    # recall 1/4, 1/4, 2/4, 2/4 at precision 1, 1/2, 2/3, 1/2
    assert area_under_curve(matched) == pytest.approx(1 / 4 + 1 / 4 * 2 / 3)
    assert eleven_points(matched) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    nothing = Matched(np.zeros(0, dtype=bool), objects=4)
    assert area_under_curve(nothing) == eleven_points(nothing) == 0
    assert math.isnan(area_under_curve(Matched(np.zeros(2, dtype=bool), objects=0)))


def test_what_is_there_found_again_scores_one_and_classes_that_do_not_occur_count_for_nothing() -> None:
    evaluator = DetectionEvaluator(CLASSES)
    evaluator.update([output([[1, 2, 30, 40]], [0.9], [2])], [target([[1, 2, 30, 40]], [2])])
    found = evaluator.compute()
    assert (found.map, found.map50, found.map75, found.voc, found.voc07) == pytest.approx((1, 1, 1, 1, 1))
    assert found.per_class["dog"] == pytest.approx(1) and math.isnan(found.per_class["cat"])
    assert (found.images, found.objects) == (1, 1)


def test_difficult_objects_are_neither_to_be_found_nor_held_against_who_finds_them() -> None:
    there = target([[0, 0, 20, 20], [50, 50, 90, 90]], [1, 1], difficult=[False, True])
    evaluators = [DetectionEvaluator(CLASSES) for _ in range(3)]
    easy = output([[0, 0, 20, 20]], [0.5], [1])
    both = output([[0, 0, 20, 20], [50, 50, 90, 90]], [0.5, 0.9], [1, 1])
    stray = output([[0, 0, 20, 20], [50, 0, 90, 40]], [0.5, 0.9], [1, 1])
    for evaluator, one in zip(evaluators, (easy, both, stray), strict=True):
        evaluator.update([one], [there])
    scores = [evaluator.compute() for evaluator in evaluators]
    assert [one.objects for one in scores] == [1, 1, 1]
    assert [one.map50 for one in scores] == pytest.approx([1, 1, 0.5])
    assert [one.voc for one in scores] == pytest.approx([1, 1, 0.5])


def test_images_without_objects_count_what_is_found_in_them_against_the_detector() -> None:
    evaluator = DetectionEvaluator(CLASSES)
    evaluator.update([output([[0, 0, 20, 20]], [0.5], [1])], [target([[0, 0, 20, 20]], [1])])
    evaluator.update([output([[0, 0, 20, 20]], [0.9], [1])], [target([], [], image_id=1)])
    found = evaluator.compute()
    assert found.map50 == pytest.approx(0.5) == found.voc and found.images == 2


def test_an_image_that_comes_twice_counts_once() -> None:
    evaluator = DetectionEvaluator(CLASSES)
    there = target([[0, 0, 20, 20]], [1])
    evaluator.update([output([[0, 0, 20, 20]], [0.5], [1])], [there])
    evaluator.update([output([], [], [])], [there])
    assert evaluator.compute().images == 1 and evaluator.compute().map == pytest.approx(1)


def test_finding_nothing_is_zero_and_having_nothing_is_no_number() -> None:
    evaluator = DetectionEvaluator(CLASSES)
    evaluator.update([output([], [], [])], [target([[0, 0, 20, 20]], [1])])
    assert (evaluator.compute().map, evaluator.compute().voc07) == (0, 0)
    empty = DetectionEvaluator(CLASSES)
    empty.update([output([[0, 0, 9, 9]], [0.5], [1])], [target([], [])])
    assert math.isnan(empty.compute().map) and math.isnan(empty.compute().voc)


def test_a_half_precision_output_on_its_way_from_training_is_taken() -> None:
    evaluator = DetectionEvaluator(CLASSES)
    one = output([[0, 0, 20, 20]], [0.5], [1])
    one["boxes"] = one["boxes"].bfloat16().requires_grad_()
    evaluator.update([one], [target([[0, 0, 20, 20]], [1])])
    assert evaluator.compute().map == pytest.approx(1)


BOX = [[0.0, 0.0, 5.0, 5.0]]


@pytest.mark.parametrize(
    "outputs,targets,what",
    [
        ([], [target(BOX, [1])], "not of the same images"),
        ([output(BOX, [0.5], [4])], [target(BOX, [1])], "a label has no class"),
        ([output(BOX, [0.5], [0])], [target(BOX, [1])], "a label has no class"),
        ([output(BOX, [0.5], [1])], [target(BOX, [9])], "a label has no class"),
        ([output([[0, 0, float("nan"), 5]], [0.5], [1])], [target(BOX, [1])], "not finite"),
        ([output(BOX, [float("nan")], [1])], [target(BOX, [1])], "scores do not fit"),
        ([output(BOX, [0.5, 0.5], [1])], [target(BOX, [1])], "scores do not fit"),
        ([output(BOX, [0.5], [1, 2])], [target(BOX, [1])], "boxes and labels do not fit"),
    ],
)
def test_what_makes_no_sense_is_refused_and_not_added(outputs: Any, targets: Any, what: str) -> None:
    evaluator = DetectionEvaluator(CLASSES)
    with pytest.raises(DataError, match=what):
        evaluator.update(outputs, targets)
    with pytest.raises(DataError, match="nothing to score"):
        evaluator.compute()
