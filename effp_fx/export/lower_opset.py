"""Writes a file of opset 18 in the words of an older one, where onnx's own version converter has no adapter.

Each rule restates one op: what is an input from some opset on becomes an attribute again, what is one op becomes the
ops that it stands for. What no rule restates is left, and onnx.checker then refuses the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from effp_fx.errors import ExportError
from effp_fx.export.onnx_nodes import attributes

_REDUCTIONS = {
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceSumSquare",
}  # fmt: skip
Nodes = list[onnx.NodeProto]


def lowered(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in an older opset; the given one is left alone.

    Raises:
        ExportError: an op has a form that the older opset cannot say.
    """
    result = onnx.ModelProto()
    result.CopyFrom(onnx.shape_inference.infer_shapes(model))
    work = _Work(result, opset)
    made: Nodes = []
    for node in result.graph.node:
        made += work.restated(node)
    del result.graph.node[:]
    result.graph.node.extend(made)
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    used = {name for node in made for name in node.input} | {item.name for item in result.graph.output}
    kept = [item for item in result.graph.initializer if item.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result


class _Work:
    """What the rules look up: constants, shapes, and names that are free."""

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self._graph, self._opset, self._made = model.graph, opset, 0
        self._old = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._constants = {item.name: item for item in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
        self._types = {item.name: item.type.tensor_type for item in values}

    def restated(self, node: onnx.NodeProto) -> Nodes:
        """The node in the older opset's words."""
        rules: list[tuple[int, bool, Callable[[onnx.NodeProto], Nodes]]] = [
            (18, node.op_type in _REDUCTIONS, self._reduction),
            (18, node.op_type == "Split", self._split),
            (18, node.op_type == "Pad", self._pad),
            (18, node.op_type == "Resize", self._resize),
            (17, node.op_type == "LayerNormalization", self._layer_norm),
            (14, node.op_type == "HardSwish", self._hard_swish),
            (14, node.op_type == "Reshape", self._reshape),
        ]
        rule = next((rule for since, fits, rule in rules if fits and self._opset < since <= self._old), None)
        return rule(node) if rule is not None else [node]

    def _refuse(self, node: onnx.NodeProto, why: str) -> ExportError:
        return ExportError(
            f"{node.op_type} cannot be said in opset {self._opset}",
            where=node.name or node.output[0],
            seen=why,
            mend=f"opset={self._old}, if what reads the file takes it",
        )

    def _numbers(self, node: onnx.NodeProto, at: int) -> list[int] | None:
        """The constant that stands at an input, None where there is no such input."""
        if at >= len(node.input) or not node.input[at]:
            return None
        if node.input[at] not in self._constants:
            raise self._refuse(node, f"its input {at} is computed")
        return [int(item) for item in numpy_helper.to_array(self._constants[node.input[at]]).flatten()]

    def _shape(self, name: str) -> list[int]:
        """Sizes of a value; 0 where one is not known."""
        kind = self._types.get(name)
        if name in self._constants:
            return list(self._constants[name].dims)
        return [dim.dim_value for dim in kind.shape.dim] if kind is not None else []

    def _constant(self, value: Any, dtype: Any) -> str:
        self._made += 1
        name = f"lowered_{self._made}"
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def _reduction(self, node: onnx.NodeProto) -> Nodes:
        axes = self._numbers(node, 1)
        given = attributes(node)
        nothing = bool(given.pop("noop_with_empty_axes", 0))
        if not axes and nothing:
            return [_node("Identity", node, [node.input[0]])]
        return [_node(node.op_type, node, [node.input[0]], **given, **({"axes": axes} if axes else {}))]

    def _split(self, node: onnx.NodeProto) -> Nodes:
        given = attributes(node)
        count = given.pop("num_outputs", None)
        if count is None:
            return [node]
        shape, axis = self._shape(node.input[0]), given.get("axis", 0)
        size = shape[axis] if shape else 0
        if not size:
            raise self._refuse(node, "the size that is split is not known")
        part = -(-size // count)
        sizes = [part] * (count - 1) + [size - part * (count - 1)]
        return [_node("Split", node, [node.input[0], self._constant(sizes, np.int64)], **given)]

    def _pad(self, node: onnx.NodeProto) -> Nodes:
        axes, pads = self._numbers(node, 3), self._numbers(node, 1)
        if attributes(node).get("mode") == b"wrap":
            raise self._refuse(node, "mode=wrap")
        if axes is None or pads is None:
            return [node]
        rank = len(self._shape(node.input[0]))
        whole = [0] * (2 * rank)
        for at, axis in enumerate(axes):
            whole[axis % rank], whole[axis % rank + rank] = pads[at], pads[at + len(axes)]
        inputs = [node.input[0], self._constant(whole, np.int64), *node.input[2:3]]
        return [_node("Pad", node, inputs, **attributes(node))]

    def _resize(self, node: onnx.NodeProto) -> Nodes:
        given = attributes(node)
        if given.pop("antialias", 0) or given.pop("keep_aspect_ratio_policy", b"stretch") != b"stretch":
            raise self._refuse(node, "antialias, or a policy of proportions")
        axes = given.pop("axes", None)
        rank = len(self._shape(node.input[0]))
        if axes is not None and [axis % rank for axis in axes] != list(range(rank)):
            raise self._refuse(node, f"axes={axes}")
        return [_node("Resize", node, list(node.input), **given)]

    def _layer_norm(self, node: onnx.NodeProto) -> Nodes:
        """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axes."""
        given = attributes(node)
        rank = len(self._shape(node.input[0]))
        if not rank or len([name for name in node.output if name]) > 1:
            raise self._refuse(node, "its rank is not known, or its statistics are read")
        axes = list(range(given.get("axis", -1) % rank, rank))
        dtype = helper.tensor_dtype_to_np_dtype(self._types[node.input[0]].elem_type or TensorProto.FLOAT)
        made: Nodes = []

        def op(kind: str, *inputs: str, **named: Any) -> str:
            self._made += 1
            made.append(helper.make_node(kind, list(inputs), [f"{node.output[0]}_{kind}_{self._made}"], **named))
            return str(made[-1].output[0])

        centred = op("Sub", node.input[0], op("ReduceMean", node.input[0], axes=axes, keepdims=1))
        variance = op("ReduceMean", op("Mul", centred, centred), axes=axes, keepdims=1)
        epsilon = self._constant(given.get("epsilon", 1e-5), dtype)
        normal = op("Div", centred, op("Sqrt", op("Add", variance, epsilon)))
        scaled = op("Mul", normal, node.input[1])
        if len(node.input) > 2 and node.input[2]:
            scaled = op("Add", scaled, node.input[2])
        made[-1].output[0] = node.output[0]
        return made

    def _hard_swish(self, node: onnx.NodeProto) -> Nodes:
        gate = f"{node.output[0]}_gate"
        return [
            helper.make_node("HardSigmoid", [node.input[0]], [gate], alpha=1.0 / 6.0, beta=0.5),
            _node("Mul", node, [node.input[0], gate]),
        ]

    def _reshape(self, node: onnx.NodeProto) -> Nodes:
        if attributes(node).get("allowzero", 0):
            sizes = self._numbers(node, 1)
            if sizes is None or 0 in sizes:
                raise self._refuse(node, "a size of 0 that means 0")
        return [_node("Reshape", node, list(node.input))]


def _node(kind: str, old: onnx.NodeProto, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, list(old.output), name=old.name, **attributes)
