"""Records the part of a model that is to be written, for one batch size or any, and what its outputs mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from effp_fx import decoded_part, dense_part
from effp_fx.capture import capture, private_copy
from effp_fx.dense_part import DensePart
from effp_fx.errors import ExportError
from effp_fx.export.dynamic_batch import free_batch
from effp_fx.export.exporters import Signature
from effp_fx.export.report import Decoding
from effp_fx.inputs import Example
from effp_fx.models import Adapter, Detection, adapter_for

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recorded:
    """The network to write, and the inputs that it is compared on; it is exported on the last of them."""

    part: DensePart
    signature: Signature
    examples: tuple[Example, ...]
    reads: tuple[str, ...]
    detection: Detection | None = None
    decoding: Decoding | None = None

    def feed(self, example: Example) -> Example:
        """What the part takes where the model takes `example`: a list of images as one batch, if it was joined."""
        if self.detection is None:
            return example
        return decoded_part.stack_of(example) or example


def record(
    network: nn.Module, example: Example, detection: Detection | None, dynamic: bool, progress: Progress
) -> Recorded:
    """Record the dense part, or, with `detection`, boxes and scores.

    Raises:
        ExportError: the part cannot be cut out, or not for any batch size.
    """
    progress("capture in eval mode")
    if detection is None:
        recorded = capture(network, example)
        found, reads, decoding = dense_part.find(recorded, example), recorded.reads, None
    else:
        decoded, reads = _decoded(network, example, detection)
        found, decoding = decoded.part, _decoding(detection, decoded)
    _check_dtypes(found)
    if not dynamic:
        fixed = Signature(found.inputs, found.outputs, ({},) * len(found.inputs), ({},) * len(found.outputs))
        return Recorded(found, fixed, (example,), reads, detection, decoding)
    progress("capture with a larger batch")

    def again(model: nn.Module, inputs: Example) -> DensePart:
        if detection is not None:
            return _decoded(model, inputs, detection)[0].part
        return dense_part.find(capture(model, inputs), inputs)

    free = free_batch(network, example, found, again)
    signature = Signature(free.part.inputs, free.part.outputs, free.free_inputs, free.free_outputs)
    return Recorded(free.part, signature, (example, free.example), reads, detection, decoding)


def detection_of(model: nn.Module, given: Detection | None, part: str) -> Detection | None:
    """What the outputs mean, for the parts that have to know. Raises ExportError where nobody says it."""
    if part == "network":
        return None
    adapter = adapter_for(model)
    detection = given or (adapter.detection(model) if adapter else None)
    if detection is None:
        raise ExportError(
            f'part="{part}" needs to know which outputs are boxes and scores',
            seen=f"a {type(model).__name__}, of which no family says it",
            mend='detection=effp_fx.models.Detection(boxes=Field(...), scores=Field(...), ...), or part="network"',
        )
    return detection


def _decoded(
    network: nn.Module, example: Example, detection: Detection
) -> tuple[decoded_part.DecodedPart, tuple[str, ...]]:
    runner = private_copy(network)
    adapter: Adapter | None = adapter_for(runner)
    if adapter is not None:
        adapter.let_all_pass(runner)
    recorded = capture(runner, example)
    return decoded_part.find(recorded, example, detection), recorded.reads


def _decoding(detection: Detection, decoded: decoded_part.DecodedPart) -> Decoding:
    return Decoding(
        box_format=detection.box_format,
        normalised=detection.normalised,
        classes=decoded.classes,
        score_threshold=detection.score_threshold,
        iou_threshold=detection.iou_threshold,
        max_detections=detection.max_detections,
        best_class_only=detection.best_class_only,
        candidates=detection.candidates,
        candidates_per=detection.candidates_per,
        levels=decoded.levels,
    )


def _check_dtypes(found: DensePart) -> None:
    kinds = {value.dtype for value in found.graph_module.state_dict().values()}
    if torch.bfloat16 in kinds:
        raise ExportError(
            "a bfloat16 network cannot be compared in ONNX Runtime",
            mend="export model.float(); the device's builder lowers the precision",
        )
