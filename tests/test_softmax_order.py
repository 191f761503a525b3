"""Tests that a softmax and the transposition before it are exchanged where that helps, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from effp_fx.export.softmax_order import softmax_first

SHAPE = [2, 3, 4, 5]


def made(perm: list[int], axis: int, *, shared: bool = False, seen: bool = False) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], "turn", perm=perm),
        helper.make_node("Softmax", ["turned"], ["soft"], "soft", axis=axis),
        helper.make_node("Add", ["soft", "turned"], ["y"]) if shared else helper.make_node("Neg", ["soft"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", *["turned"] * seen)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
    graph = helper.make_graph(nodes, "net", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def read_in_a_branch() -> onnx.ModelProto:
    """The transposed tensor is read by the branches of an If as well."""
    model = made([0, 2, 1, 3], 1)
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2, 4, 3, 5])
    body = helper.make_graph([helper.make_node("Abs", ["turned"], ["inner"])], "body", [], [value])
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("", TensorProto.BOOL, [], [True]))
    model.graph.node.extend([yes, helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body)])
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 4, 3, 5]))
    return model


def run(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    result: np.ndarray = session.run(["y"], {"x": x})[0]
    return result


@pytest.mark.parametrize(
    ("perm", "axis", "new"), [([0, 2, 1, 3], 1, 2), ([0, 3, 1, 2], 1, 3), ([0, 3, 1, 2], -3, 3), ([1, 2, 3, 0], 0, 1)]
)
def test_they_are_exchanged(perm: list[int], axis: int, new: int) -> None:
    model = made(perm, axis)
    before = model.SerializeToString()
    result = softmax_first(model)
    assert model.SerializeToString() == before
    assert [node.op_type for node in result.graph.node] == ["Softmax", "Transpose", "Neg"]
    assert helper.get_attribute_value(result.graph.node[0].attribute[0]) == new
    np.testing.assert_array_equal(run(result), run(model))


@pytest.mark.parametrize(
    "model",
    [
        made([0, 2, 3, 1], 3),
        made([0, 2, 3, 1], -1),
        made([0, 1, 3, 2], 1),
        made([0, 2, 1, 3], 1, shared=True),
        made([0, 2, 1, 3], 1, seen=True),
        read_in_a_branch(),
    ],
    ids=["brought to the end", "counted from there", "unmoved", "read twice", "an output", "in a branch"],
)
def test_what_would_not_gain_or_is_read_elsewhere_stays(model: onnx.ModelProto) -> None:
    assert [node.op_type for node in softmax_first(model).graph.node][:2] == ["Transpose", "Softmax"]
    np.testing.assert_array_equal(run(softmax_first(model)), run(model))
