"""Small ONNX files made by hand, one op or a few of them each, for what is told from a file alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F, I64 = TensorProto.FLOAT, TensorProto.INT64
IMAGE = (1, 16, 8, 8)
Graph = Callable[[Path], Path]


def graph(
    *nodes: onnx.NodeProto,
    shape: Sequence[int | str] = IMAGE,
    dtype: int = F,
    out: int = F,
    opset: int = 17,
    rank: int | None = None,
    **constants: Any,
) -> Graph:
    """Writes a file: input x, output y, the nodes, constants by name; `k` and `scores` are inputs where used."""

    def write(folder: Path) -> Path:
        made = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        inputs = [helper.make_tensor_value_info("x", dtype, shape)]
        for name in ("k", "scores"):
            if any(name in node.input for node in nodes) and name not in constants:
                size = [1] if name == "k" else [1, 20, 4]
                inputs.append(helper.make_tensor_value_info(name, I64 if name == "k" else F, size))
        output = helper.make_tensor_value_info("y", out, None if rank is None else [None] * rank)
        body = helper.make_graph(list(nodes), "one rule", inputs, [output], made)
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("TRT", 1)]
        path = folder / "rule.onnx"
        onnx.save(helper.make_model(body, opset_imports=imports), str(path))
        return path

    return write


def node(op: str, *inputs: str, outputs: Sequence[str] = ("y",), domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs or ("x",)), list(outputs), domain=domain, **attributes)


def i64(*values: int) -> Any:
    return np.asarray(values, dtype=np.int64)


def weight(*shape: int) -> Any:
    return np.zeros(shape, dtype=np.float32)


def nms(version: str = "1", drop: str = "", **more: Any) -> onnx.NodeProto:
    given = dict(
        score_threshold=0.25,
        iou_threshold=0.5,
        max_output_boxes=100,
        background_class=-1,
        score_activation=0,
        box_coding=0,
        plugin_version=version,
    )
    given.pop(drop, None)
    names = ("y", "boxes", "kept", "classes")
    return node("EfficientNMS_TRT", "x", "scores", outputs=names, domain="TRT", **(given | more))


def resize(**attributes: Any) -> Graph:
    scales = np.asarray([1, 1, 2, 2], dtype=np.float32)
    return graph(node("Resize", "x", "", "scales_", **attributes), scales_=scales, opset=18)


def unknown(name: str) -> onnx.ValueInfoProto:
    """A tensor of floats whose shape nobody says."""
    return helper.make_tensor_value_info(name, F, None)
