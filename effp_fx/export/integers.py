"""Makes 64-bit integers 32-bit where ONNX lets them be: TensorRT 8 knows no others, and casts and clamps by itself."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

# Inputs whose type ONNX leaves open between the two; shapes (Reshape, Expand, Tile) and axes must stay 64-bit.
_OPEN = {"Gather": (1,), "GatherElements": (1,), "Slice": (1, 2, 3, 4)}
_LIMIT = 2**31 - 1


def narrowed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its constant indices as INT32, those beyond its range clamped to it; the given one is left alone.

    `Slice` has one type for all its indices: where one of them is computed, they stay.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {item.name: item for item in result.graph.initializer if item.data_type == onnx.TensorProto.INT64}
    made: dict[str, str] = {}
    for node in result.graph.node:
        places = [at for at in _OPEN.get(node.op_type, ()) if at < len(node.input) and node.input[at]]
        if not places or any(node.input[at] not in constants for at in places):
            continue
        for at in places:
            name = node.input[at]
            if name not in made:
                made[name] = _copy(result.graph, constants[name])
            node.input[at] = made[name]
    used = {name for node in result.graph.node for name in node.input} | {item.name for item in result.graph.output}
    kept = [item for item in result.graph.initializer if item.name in used]
    if len(kept) < len(result.graph.initializer):
        del result.graph.initializer[:]
        result.graph.initializer.extend(kept)
    return result


def _copy(graph: onnx.GraphProto, item: onnx.TensorProto) -> str:
    values = np.clip(numpy_helper.to_array(item), -_LIMIT - 1, _LIMIT).astype(np.int32)
    graph.initializer.append(numpy_helper.from_array(values, f"{item.name}_int32"))
    return str(graph.initializer[-1].name)
