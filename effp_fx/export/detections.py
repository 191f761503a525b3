"""Adds the choice of detections to a file of boxes and scores: as ONNX ops, or as TensorRT's EfficientNMS plugin.

The outputs are those of the plugin either way: how many detections an image has, and their boxes (corners), scores and
labels, padded to the largest number. Before suppression stands the family's own choice of candidates: the best of each
class, level or image, and of each box its best class alone, written as a mask over the scores (a score that is no
candidate becomes 0). Suppression works by score within a class, so fewer candidates give the first of the same list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from effp_fx.errors import ExportError
from effp_fx.export.report import RUNTIME, Decoding

COUNT, BOXES, SCORES, CLASSES = "num_detections", "detection_boxes", "detection_scores", "detection_classes"
PLUGIN, PLUGIN_DOMAIN = "EfficientNMS_TRT", "TRT"
_END = 2**31 - 1


def suppression_for(decoding: Decoding, target: str) -> str | None:
    """The op that suppresses for this target; None where the family suppresses nothing."""
    if decoding.iou_threshold is None:
        return None
    return "NonMaxSuppression" if target == RUNTIME else PLUGIN


def add(model: onnx.ModelProto, decoding: Decoding, target: str, opset: int) -> onnx.ModelProto:
    """The model with detections in place of its outputs `boxes` and `scores`; the given one is left alone.

    Raises:
        ExportError: the batch is free, and the target has no op that suppresses for any batch.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    shape = [dim.dim_value or None for dim in result.graph.output[1].type.tensor_type.shape.dim]
    writer = _Writer(result.graph, opset, shape[0], shape[1] or 0, shape[2] or 0)
    boxes = writer.corners("boxes") if decoding.box_format == "cxcywh" else "boxes"
    scores = writer.candidates("scores", decoding)
    suppression = suppression_for(decoding, target)
    if suppression == PLUGIN:
        parts = writer.plugin(boxes, scores, decoding)
        result.opset_import.append(helper.make_opsetid(PLUGIN_DOMAIN, 1))
    elif suppression is not None:
        parts = writer.suppressed(boxes, scores, decoding)
    else:
        parts = writer.best(boxes, scores, decoding)
    _set_outputs(result.graph, parts, decoding.max_detections, shape[0])
    return result


def _set_outputs(graph: onnx.GraphProto, parts: Sequence[str], most: int, batch: int | None) -> None:
    first: Any = batch if batch is not None else graph.output[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    kinds = (TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32)
    shapes = ([first, 1], [first, most, 4], [first, most], [first, most])
    graph.ClearField("output")
    for name, part, kind, shape in zip((COUNT, BOXES, SCORES, CLASSES), parts, kinds, shapes, strict=True):
        graph.node.append(helper.make_node("Identity", [part], [name], name=f"detections/{name}"))
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))


class _Writer:
    """Appends ops to a graph; each method returns the names of what it computes."""

    def __init__(self, graph: onnx.GraphProto, opset: int, batch: int | None, anchors: int, classes: int) -> None:
        self._graph, self._opset = graph, opset
        self._batch, self._anchors, self._classes = batch, anchors, classes
        self._made = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Append an op; its one output, or a tuple of them."""
        self._made += 1
        name = f"detections/{kind}_{self._made}"
        names = [f"{name}:{index}" if outputs > 1 else name for index in range(outputs)]
        self._graph.node.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes))
        return tuple(names) if outputs > 1 else names[0]

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        """Append a constant."""
        self._made += 1
        name = f"detections/constant_{self._made}"
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def slice(self, value: str, axis: int, start: int, stop: int) -> str:
        """Elements `start` to `stop` of a dimension."""
        return str(self.op("Slice", value, self.const([start]), self.const([stop]), self.const([axis])))

    def corners(self, boxes: str) -> str:
        """Two corners of boxes that are given by centre and size."""
        centre, size = self.slice(boxes, 2, 0, 2), self.slice(boxes, 2, 2, 4)
        half = self.op("Mul", size, self.const(0.5, np.float32))
        return str(self.op("Concat", self.op("Sub", centre, half), self.op("Add", centre, half), axis=2))

    def candidates(self, scores: str, decoding: Decoding) -> str:
        """Scores (batch, anchors, classes) in which all that is no candidate is 0."""
        if decoding.best_class_only and self._classes > 1:
            scores = self._at_least(scores, scores, self._largest(scores))
        most = decoding.candidates
        if most is None:
            return scores
        if decoding.candidates_per == "anchor":
            return self._best_anchors(scores, most)
        if decoding.candidates_per == "class":
            return self._at_least(scores, scores, self._least(scores, most, 1)) if most < self._anchors else scores
        levels = decoding.levels if decoding.candidates_per == "level" else (self._anchors,)
        pieces, start = [], 0
        for size in levels:
            piece = self.slice(scores, 1, start, start + size) if len(levels) > 1 else scores
            start += size
            if size * self._classes > most:
                flat = self.op("Reshape", piece, self.const([0, 1, size * self._classes]))
                piece = self._at_least(piece, piece, self._least(flat, most, 2))
            pieces.append(piece)
        return str(self.op("Concat", *pieces, axis=1)) if len(pieces) > 1 else pieces[0]

    def _best_anchors(self, scores: str, most: int) -> str:
        if most >= self._anchors:
            return scores
        largest = self._largest(scores)
        return self._at_least(scores, largest, self._least(largest, most, 1))

    def _largest(self, scores: str) -> str:
        """The largest score of each anchor; the axes are an input from opset 18 on."""
        if self._opset >= 18:
            return str(self.op("ReduceMax", scores, self.const([2]), keepdims=1))
        return str(self.op("ReduceMax", scores, axes=[2], keepdims=1))

    def _least(self, scores: str, most: int, axis: int) -> str:
        """The least of the best `most` along an axis, as a dimension of one."""
        values, _ = self.op("TopK", scores, self.const([most]), outputs=2, axis=axis)
        return self.slice(values, axis, most - 1, most)

    def _at_least(self, scores: str, compared: str, bound: str) -> str:
        passes = self.op("GreaterOrEqual", compared, bound)
        return str(self.op("Where", passes, scores, self.const(0.0, np.float32)))

    def plugin(self, boxes: str, scores: str, decoding: Decoding) -> tuple[str, ...]:
        """TensorRT's plugin, which takes (batch, anchors, 4) and (batch, anchors, classes)."""
        count, chosen, best, labels = self.op(
            PLUGIN,
            boxes,
            scores,
            outputs=4,
            domain=PLUGIN_DOMAIN,
            plugin_version="1",
            background_class=-1,
            max_output_boxes=decoding.max_detections,
            score_threshold=float(decoding.score_threshold),
            iou_threshold=float(decoding.iou_threshold or 0.0),
            score_activation=0,
            box_coding=0,
        )
        self._typed(count, TensorProto.INT32, [self._batch or "batch", 1])
        self._typed(chosen, TensorProto.FLOAT, [self._batch or "batch", decoding.max_detections, 4])
        self._typed(best, TensorProto.FLOAT, [self._batch or "batch", decoding.max_detections])
        self._typed(labels, TensorProto.INT32, [self._batch or "batch", decoding.max_detections])
        return count, chosen, best, self._labels(labels, decoding)

    def _typed(self, name: str, kind: int, shape: list[Any]) -> None:
        """Say what a plugin returns: shape inference knows nothing of it."""
        self._graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))

    def _labels(self, columns: str, decoding: Decoding) -> str:
        """The model's own labels for columns of the scores, as INT32."""
        if decoding.classes != tuple(range(len(decoding.classes))):
            return str(self.op("Gather", self.const(decoding.classes, np.int32), columns, axis=0))
        return str(self.op("Cast", columns, to=TensorProto.INT32))

    def best(self, boxes: str, scores: str, decoding: Decoding) -> tuple[str, ...]:
        """The best scores, whichever boxes they belong to."""
        total = self._anchors * self._classes
        most = min(decoding.max_detections, total)
        flat = self.op("Reshape", scores, self.const([0, total]))
        values, places = self.op("TopK", flat, self.const([most]), outputs=2, axis=1)
        anchors = self.op("Div", places, self.const(self._classes))
        columns = self.op("Sub", places, self.op("Mul", anchors, self.const(self._classes)))
        index = self.op("Unsqueeze", anchors, self.const([2]))
        four = self.op("Concat", index, index, index, index, axis=2)
        chosen = self.op("GatherElements", boxes, four, axis=1)
        passes = self.op("Greater", values, self.const(decoding.score_threshold, np.float32))
        ones = self.op("Cast", passes, to=TensorProto.FLOAT)  # TensorRT 8 sums no integers
        count = self.op("Cast", self.op("ReduceSum", ones, self.const([1]), keepdims=1), to=TensorProto.INT32)
        labels = self._labels(columns, decoding)
        missing = decoding.max_detections - most
        if missing:
            chosen, values = self._padded(chosen, [missing, 0]), self._padded(values, [missing])
            labels = self._padded(labels, [missing], np.int32)
        return count, chosen, values, labels

    def _padded(self, value: str, missing: list[int], dtype: Any = np.float32) -> str:
        pads = [0] * (len(missing) + 2) + missing
        return str(self.op("Pad", value, self.const(pads), self.const(0, dtype)))

    def suppressed(self, boxes: str, scores: str, decoding: Decoding) -> tuple[str, ...]:
        """NonMaxSuppression, one image after another, and the best of what it leaves."""
        if self._batch is None:
            raise ExportError(
                "detections cannot be chosen for a free batch in ONNX Runtime",
                expected="a number of images, over which the choice is written out",
                mend='batch=1, or part="decoded" with the choice outside, or a TensorRT target, whose plugin takes any',
            )
        images = [self._one_image(at, boxes, scores, decoding) for at in range(self._batch)]
        return tuple(
            str(self.op("Concat", *[image[part] for image in images], axis=0)) if len(images) > 1 else images[0][part]
            for part in range(4)
        )

    def _one_image(self, at: int, boxes: str, scores: str, decoding: Decoding) -> tuple[str, ...]:
        most = decoding.max_detections
        own_boxes, own_scores = self.slice(boxes, 0, at, at + 1), self.slice(scores, 0, at, at + 1)
        found = self.op(
            "NonMaxSuppression",
            own_boxes,
            self.op("Transpose", own_scores, perm=[0, 2, 1]),
            self.const([most]),
            self.const([decoding.iou_threshold], np.float32),
            self.const([decoding.score_threshold], np.float32),
        )
        column, anchor = (self.op("Gather", found, self.const(place), axis=1) for place in (1, 2))
        place = self.op("Add", self.op("Mul", anchor, self.const(self._classes)), column)
        values = self.op("Gather", self.op("Reshape", own_scores, self.const([-1])), place, axis=0)
        count = self.op("Min", self.op("Shape", values), self.const([most]))
        best, order = self.op("TopK", values, count, outputs=2, axis=0)
        chosen = self.op("Gather", self.op("Squeeze", own_boxes, self.const([0])), self._pick(anchor, order), axis=0)
        labels = self._labels(self._pick(column, order), decoding)
        missing = self.op("Sub", self.const([most]), count)
        zero = self.const([0])
        whole = self.op("Pad", chosen, self.op("Concat", zero, zero, missing, zero, axis=0))
        line = self.op("Concat", zero, missing, axis=0)
        parts = (
            self.op("Cast", count, to=TensorProto.INT32),
            whole,
            self.op("Pad", best, line),
            self.op("Pad", labels, line),
        )
        return tuple(str(self.op("Unsqueeze", part, self.const([0]))) for part in parts)

    def _pick(self, values: str, order: str) -> str:
        return str(self.op("Gather", values, order, axis=0))
