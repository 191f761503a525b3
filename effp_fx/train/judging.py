"""Scores a detector on a data set: each process its part of the images, all of them on the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from effp_fx.data import Target
from effp_fx.errors import TrainingError
from effp_fx.evaluate.detection import DetectionEvaluator, DetectionScores
from effp_fx.train.ranks import Ranks

_OUTPUTS = ("boxes", "scores", "labels")


def judge(
    model: nn.Module,
    batches: Iterable[tuple[Sequence[Tensor], Sequence[Target]]],
    classes: Sequence[str],
    *,
    ranks: Ranks | None = None,
) -> DetectionScores:
    """Average precisions of a detector over all batches, in eval mode, in the dtype of its parameters.

    Args:
        model: returns boxes, scores and labels of each image, as torchvision's detectors; its mode is put back.
        batches: images of 0 to 1 and their targets.
        classes: names; the label of `classes[i]` is i + 1.
        ranks: the processes among which the images are shared out; None: this one has them all.

    Raises:
        DataError: labels without a class, boxes that are not finite.
        TrainingError: the model returns no detections.
    """
    like = next(model.parameters())
    evaluator = DetectionEvaluator(classes)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images, targets in batches:
                outputs = model([image.to(like) for image in images])
                evaluator.update([_on_cpu(output, model) for output in outputs], targets)
    finally:
        model.train(was_training)
    if ranks is not None and ranks.world > 1:
        for other in ranks.gathered(evaluator):
            evaluator.merge(other)
    return evaluator.compute()


def _on_cpu(output: Any, model: nn.Module) -> dict[str, Tensor]:
    if not isinstance(output, Mapping) or not output.keys() >= set(_OUTPUTS):
        raise TrainingError(
            "the model returns no detections",
            seen=f"{type(output).__name__} from {type(model).__name__} for an image",
            expected="a dict of boxes, scores and labels for each image, as torchvision's detectors return",
        )
    return {name: output[name].cpu() for name in _OUTPUTS}
