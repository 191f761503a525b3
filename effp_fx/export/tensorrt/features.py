"""Recognises the forms of ops that releases of TensorRT treat differently.

Each function names the features of one node, by facts of the node alone. What a release does with a feature stands in
its table; `FEATURES` is the list of all names, and every table says something about each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from effp_fx.export.tensorrt.network import Node

Names = Iterator[str]
Limits = dict[str, int]

_TRANSFORMS = {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}
_INT32 = np.iinfo(np.int32)


def features(node: Node, limits: Limits) -> Names:
    """The features of a node, in the words of the tables."""
    if node.op in _BY_OP:
        yield from _BY_OP[node.op](node, limits)
    yield from _numbers(node)


def _reduce(node: Node, _: Limits) -> Names:
    if not node.has(1):
        if node.attributes.get("noop_with_empty_axes") and not node.attributes.get("axes"):
            yield "reduce-noop"
        return
    axes, shape = node.constant(1), node.shape()
    if axes is None:
        yield "reduce-axes-computed"
    whole = axes is not None and shape is not None and len({int(axis) % len(shape) for axis in axes}) == len(shape)
    if node.op != "ReduceSum" and not whole:  # ReduceSum has had this form since opset 13, and every release reads it
        yield "reduce-axes-input"


def _topk(node: Node, limits: Limits) -> Names:
    k = node.constant(1)
    if not node.is_constant(1):
        yield "topk-computed-k"
    elif k is not None and int(k.reshape(-1)[0]) > limits["topk-k"]:
        yield "topk-large-k"
    if node.attributes.get("sorted", 1) == 0:
        yield "topk-unsorted"


def _grid_sample(node: Node, _: Limits) -> Names:
    if node.attributes.get("mode") in ("linear", "cubic"):
        yield "gridsample-opset20"
    shape = node.shape()
    if shape is not None and len(shape) != 4:
        yield "gridsample-volume"


def _resize(node: Node, _: Limits) -> Names:
    given = node.attributes
    if given.get("antialias"):
        yield "resize-antialias"
    if given.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        yield "resize-aspect-ratio"
    if given.get("mode") == "cubic":
        yield "resize-cubic"
    if given.get("coordinate_transformation_mode", "half_pixel") not in _TRANSFORMS:
        yield "resize-transform"
    axes, shape = given.get("axes"), node.shape()
    if axes and (shape is None or list(axes) != list(range(len(shape)))):
        yield "resize-axes-sizes" if node.has(3) else "resize-axes-scales"


def _pad(node: Node, _: Limits) -> Names:
    if node.attributes.get("mode") == "wrap":
        yield "pad-wrap"
    if node.has(3):
        yield "pad-axes-input" if node.is_constant(3) else "pad-axes-computed"


def _scatter_nd(node: Node, _: Limits) -> Names:
    if "reduction" in node.attributes:
        yield "scatternd-attribute" if node.attributes["reduction"] == "none" else "scatternd-reduction"


def _scatter_elements(node: Node, _: Limits) -> Names:
    if node.attributes.get("reduction", "none") != "none":
        yield "scatterelements-reduction"


def _computed(feature: str, *positions: int) -> Callable[[Node, Limits], Names]:
    """The feature of an op whose inputs at these positions had better be constants."""

    def of(node: Node, _: Limits) -> Names:
        if any(node.has(position) and not node.is_constant(position) for position in positions):
            yield feature

    return of


def _split(node: Node, _: Limits) -> Names:
    shape = node.shape()
    if node.has(1) or "split" in node.attributes or shape is None:
        return
    size = shape[node.attributes.get("axis", 0)]
    if size is not None and size % len(node.outputs):
        yield "split-uneven"


def _pool(node: Node, _: Limits) -> Names:
    if any(step != 1 for step in node.attributes.get("dilations", ())):
        yield "pool-dilations"
    if node.op == "MaxPool" and len(node.outputs) > 1 and node.outputs[1]:
        yield "maxpool-indices"


def _batch_norm(node: Node, _: Limits) -> Names:
    if node.attributes.get("training_mode"):
        yield "batchnorm-training"


def _einsum(node: Node, _: Limits) -> Names:
    if "..." in str(node.attributes.get("equation", "")):
        yield "einsum-ellipsis"


def _quantize(node: Node, _: Limits) -> Names:
    zero = node.constant(2)
    if node.has(2) and (zero is None or np.any(zero)):
        yield "quantize-zero-point"


def _layer_norm(node: Node, _: Limits) -> Names:
    if any(node.outputs[1:]):
        yield "layernorm-statistics"


def _always(feature: str) -> Callable[[Node, Limits], Names]:
    def of(_: Node, __: Limits) -> Names:
        yield feature

    return of


def _numbers(node: Node) -> Names:
    """INT64 constants that no INT32 holds (the end of a slice may: it means "to the end"), and DOUBLE."""
    arrays = [node.constant(position) for position in range(len(node.inputs))]
    large = [a for a in arrays if a is not None and a.dtype == np.int64 and a.size and _outside(a)]
    if large and node.op != "Slice":
        yield "int64-clamped"
    if not node.folded and any(node.dtype(position) == "DOUBLE" for position in range(len(node.inputs))):
        yield "double"


def _outside(array: np.ndarray[Any, Any]) -> bool:
    return bool(array.max() > _INT32.max or array.min() < _INT32.min)


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_BY_OP: dict[str, Callable[[Node, Limits], Names]] = {
    **{f"Reduce{name}": _reduce for name in _REDUCTIONS},
    "TopK": _topk,
    "GridSample": _grid_sample,
    "Resize": _resize,
    "Pad": _pad,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "Slice": _computed("slice-axes-computed", 3),
    "Squeeze": _computed("squeeze-axes-computed", 1),
    "Unsqueeze": _computed("unsqueeze-axes-computed", 1),
    "CumSum": _computed("cumsum-axis-computed", 1),
    "Clip": _computed("clip-bounds-computed", 1, 2),
    "InstanceNormalization": _computed("instancenorm-computed", 1, 2),
    "Split": _split,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "BatchNormalization": _batch_norm,
    "Einsum": _einsum,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
    "LayerNormalization": _layer_norm,
    "NonMaxSuppression": _always("nonmaxsuppression"),
    "NonZero": _always("dynamic-count"),
    "If": _always("control-flow"),
    "Loop": _always("control-flow"),
    "Scan": _always("control-flow"),
    "RoiAlign": _always("roialign-plugin"),
}
FEATURES = (
    "reduce-noop",
    "reduce-axes-computed",
    "reduce-axes-input",
    "topk-computed-k",
    "topk-large-k",
    "topk-unsorted",
    "gridsample-opset20",
    "gridsample-volume",
    "resize-antialias",
    "resize-aspect-ratio",
    "resize-cubic",
    "resize-transform",
    "resize-axes-sizes",
    "resize-axes-scales",
    "pad-wrap",
    "pad-axes-input",
    "pad-axes-computed",
    "scatternd-attribute",
    "scatternd-reduction",
    "scatterelements-reduction",
    "slice-axes-computed",
    "squeeze-axes-computed",
    "unsqueeze-axes-computed",
    "cumsum-axis-computed",
    "clip-bounds-computed",
    "instancenorm-computed",
    "split-uneven",
    "maxpool-indices",
    "pool-dilations",
    "batchnorm-training",
    "einsum-ellipsis",
    "quantize-zero-point",
    "layernorm-statistics",
    "nonmaxsuppression",
    "dynamic-count",
    "control-flow",
    "roialign-plugin",
    "int64-clamped",
    "double",
)
"""Every name that `features` may give."""
