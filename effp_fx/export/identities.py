"""Takes out resizes to the size that is there: detectors bring pictures to their own size, also those that have it.

A resize by the factor 1 gives each element back exactly, but it would run on the device all the same, and no DLA takes
it.
"""

from __future__ import annotations

import onnx

from effp_fx.export.onnx_nodes import attributes, read_inside

_MODES = {"nearest", "linear"}
_PLACES = {"half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners"}


def without_resizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without resizes that change nothing; the given one is left alone."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: [(dim.dim_value, dim.dim_param) for dim in value.type.tensor_type.shape.dim]
        for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    }
    useless = [node for node in model.graph.node if _is_identity(node, shapes)]
    if not useless:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    outputs = {value.name for value in model.graph.output} | read_inside(model.graph)
    instead: dict[str, str] = {}
    kept = []
    for node in result.graph.node:
        inputs = [instead.get(name, name) for name in node.input]
        if any(node.output[0] == other.output[0] for other in useless) and node.output[0] not in outputs:
            instead[node.output[0]] = inputs[0]
            continue
        node.input[:] = inputs
        kept.append(node)
    del result.graph.node[:]
    result.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    weights = [item for item in result.graph.initializer if item.name in used or item.name in outputs]
    del result.graph.initializer[:]
    result.graph.initializer.extend(weights)
    return result


def _is_identity(node: onnx.NodeProto, shapes: dict[str, list[tuple[int, str]]]) -> bool:
    if node.op_type != "Resize":
        return False
    given = attributes(node)
    mode = given.get("mode", b"nearest").decode()
    place = given.get("coordinate_transformation_mode", b"half_pixel").decode()
    before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
    known = before is not None and before == after and all(size or name for size, name in before)
    return known and bool(before) and mode in _MODES and place in _PLACES
