"""Detectors on drawn scenes, in PyTorch and from an ONNX file: detection by detection, and by their mAP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from effp_fx import models
from effp_fx.data import Difficulty
from effp_fx.data.drawing import Scene, draw_scene
from effp_fx.data.shapes import CLASSES
from effp_fx.evaluate.detection import DetectionEvaluator
from effp_fx.export import Decoding, ExportReport, detections, parity, selection
from effp_fx.export.handoff import preprocessing
from effp_fx.export.handoff.board.runtime import images
from effp_fx.export.selection import Detections
from effp_fx.inputs import Example, map_tensors

IMAGES = {"own": 8, "drawn": 64}
"""How many scenes are judged for each kind of truth. A random network finds a hundred objects in each."""
NOISE = 2.0
"""Standard deviation, in levels of 256, of what is added to the pictures on which a model makes its own truth."""
SAME = 1e-3
"""How far apart two detections may be that are taken for one: in score, and of the largest coordinate."""
_MOST = 100
"""Detections of an image that mAP looks at."""
_SEED = 11
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Judged:
    """One file beside its model."""

    images: int
    detections: int
    """Of the model or of the file, whichever are more."""
    differ: int
    """How many of them have no partner on the other side, of one class, box and score within 1e-3."""
    map_model: float
    map_file: float
    """mAP@[.5:.95] of PyTorch and of ONNX Runtime, against the same truth."""
    truth: str
    """"drawn": what was drawn; "own": what the model itself detects where a little noise is added to the pictures."""


def draw(count: int, side: int) -> list[Scene]:
    """Square scenes; a larger number begins with those of a smaller one."""
    difficulty, smallest = Difficulty.of(0.2), max(side // 9, 8)
    return [
        draw_scene(np.random.default_rng([_SEED, number]), side, difficulty, smallest=smallest, most=4)
        for number in range(count)
    ]


def fed(pictures: Sequence[Pixels], model: nn.Module, example: Example) -> Example:
    """Inputs like those of `example`, a batch or a list of images, with these pictures as the family prepares them."""
    height, width = side_of(example)
    how = preprocessing.of_family(model)[0].as_json(height, width)
    prepared = [torch.from_numpy(images.prepare(picture, how)[0]) for picture in pictures]
    if isinstance(example.args[0] if example.args else None, list):
        return Example((prepared, *example.args[1:]), example.kwargs)
    stacked: Example = map_tensors(lambda _: torch.stack(prepared), example)
    return stacked


def side_of(example: Example) -> tuple[int, int]:
    """Height and width of the pictures."""
    height, width = example.tensors()[0].shape[-2:]
    return int(height), int(width)


def judge(model: nn.Module, example: Example, file: Path, report: ExportReport, truth: str) -> Judged:
    """Run a model and its file of detections over the same scenes.

    Args:
        model: in eval mode.
        example: inputs as the model takes them, of one image.
        file: written with part="full".
        report: of that export.
        truth: "drawn" or "own", see `Judged`; "drawn" needs a model whose labels are those of the scenes.
    """
    decoding = report.decoding
    assert decoding is not None
    scenes = draw(IMAGES[truth], max(side_of(example)))
    pictures: list[Pixels] = [np.asarray(scene.image) for scene in scenes]
    inputs = [fed([picture], model, example) for picture in pictures]
    own = [in_torch(model, one, decoding) for one in inputs]
    found = in_runtime(file, report, inputs)
    differ = selection.unmatched(found, own, SAME)
    there = drawn(scenes) if truth == "drawn" else perturbed(model, example, pictures, decoding)
    return Judged(
        images=len(scenes),
        detections=differ[0],
        differ=differ[1],
        map_model=mean_precision(own, there, decoding.classes),
        map_file=mean_precision(found, there, decoding.classes),
        truth=truth,
    )


def in_torch(model: nn.Module, inputs: Example, decoding: Decoding) -> Detections:
    """What the model itself detects in one image; where it returns every anchor, what its family chooses."""
    adapter = models.adapter_for(model)
    meaning = adapter.detection(model) if adapter is not None else None
    assert meaning is not None
    with torch.no_grad():
        own = selection.own(model(*inputs.args, **inputs.kwargs), meaning)
    image = own[0] if isinstance(own, list) else selection.select(*own, decoding)[0]
    passes = image.scores > decoding.score_threshold
    return Detections(image.boxes[passes], image.scores[passes], image.labels[passes])


def in_runtime(file: Path, report: ExportReport, inputs: Sequence[Example]) -> list[Detections]:
    """What the file detects in each image."""
    session = parity.open_session(file)
    names = [detections.COUNT, detections.BOXES, detections.SCORES, detections.CLASSES]
    shape = [size for size in report.inputs[0].shape if isinstance(size, int)]
    found = []
    for one in inputs:
        value = one.tensors()[0].reshape(shape).numpy()
        results = session.run(names, {report.inputs[0].name: value})
        count, boxes, scores, labels = (torch.from_numpy(result)[0] for result in results)
        found.append(Detections(boxes[: int(count)], scores[: int(count)], labels[: int(count)].long()))
    return found


def drawn(scenes: Sequence[Scene]) -> list[Detections]:
    """What was drawn, as detections of score 1, labels from 1."""
    found = []
    for scene in scenes:
        objects = [item for item in scene.objects if not item.difficult]
        boxes = torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([CLASSES.index(item.name) + 1 for item in objects], dtype=torch.long)
        found.append(Detections(boxes, torch.ones(len(objects)), labels))
    return found


def perturbed(model: nn.Module, example: Example, pictures: Sequence[Pixels], decoding: Decoding) -> list[Detections]:
    """What the model detects in the same pictures with a little noise: the best of each, as many as mAP looks at."""
    random = np.random.default_rng(_SEED)
    found = []
    for picture in pictures:
        noisy = np.clip(np.rint(picture + random.normal(0, NOISE, picture.shape)), 0, 255).astype(np.uint8)
        image = in_torch(model, fed([noisy], model, example), decoding)
        best = image.scores.argsort(descending=True)[:_MOST]
        found.append(Detections(image.boxes[best], image.scores[best], image.labels[best]))
    return found


def mean_precision(found: Sequence[Detections], there: Sequence[Detections], classes: Sequence[int]) -> float:
    """mAP@[.5:.95] of detections whose labels are those of `classes`."""
    evaluator = DetectionEvaluator([str(label) for label in classes])
    for number, (one, two) in enumerate(zip(found, there, strict=True)):
        output, target = _columns(one, classes), _columns(two, classes)
        evaluator.update([output], [target | {"image_id": number}])
    return evaluator.compute().map


def _columns(image: Detections, classes: Sequence[int]) -> dict[str, Any]:
    labels: Tensor = torch.tensor([classes.index(int(label)) + 1 for label in image.labels], dtype=torch.long)
    return {"boxes": image.boxes, "scores": image.scores, "labels": labels}
