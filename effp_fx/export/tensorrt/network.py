"""An ONNX file read for checking: its nodes with their attributes, shapes, types and constants; bodies included."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from effp_fx.errors import FileFormatError
from effp_fx.export import onnx_nodes

STANDARD = ("", "ai.onnx")
Shape = tuple[int | None, ...]
"""None stands for a size that is free or unknown."""

_LARGE = 2**31 - 2**20
_FOLDED = 4096
"""Elements up to which the values of a constant are read: axes, sizes and thresholds, not weights."""


@dataclass(frozen=True)
class Value:
    """What is known of a tensor."""

    shape: Shape | None = None
    dtype: str | None = None
    """As ONNX calls it: FLOAT, INT64."""


@dataclass(frozen=True)
class Node:
    """One node. Names of absent optional inputs are empty."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    network: Network
    depth: int = 0
    """0 in the main graph, one more in each body of a loop or branch."""

    def has(self, position: int) -> bool:
        """Whether the optional input at this position is given."""
        return position < len(self.inputs) and bool(self.inputs[position])

    def constant(self, position: int) -> NDArray[Any] | None:
        """The values of an input that is a small constant."""
        return self.network.values.get(self.inputs[position]) if self.has(position) else None

    def is_constant(self, position: int) -> bool:
        """Whether the input is an initializer, or computed from constants alone."""
        return self.has(position) and self.inputs[position] in self.network.constants

    def shape(self, position: int = 0) -> Shape | None:
        """The shape of an input."""
        return self.network.value(self.inputs[position]).shape if self.has(position) else None

    def dtype(self, position: int = 0) -> str | None:
        """The type of an input."""
        return self.network.value(self.inputs[position]).dtype if self.has(position) else None

    def output_shape(self, position: int = 0) -> Shape | None:
        """The shape of an output."""
        return self.network.value(self.outputs[position]).shape

    @property
    def folded(self) -> bool:
        """Whether TensorRT computes it while it builds: every input is constant, or there is none."""
        return self.depth == 0 and all(output in self.network.constants for output in self.outputs if output)


@dataclass
class Network:
    """All nodes of a file in its own order, which is topological."""

    path: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: list[Node] = field(default_factory=list)
    known: dict[str, Value] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    quantised: bool = False
    """Whether ranges are written into the file as QuantizeLinear and DequantizeLinear."""

    def value(self, name: str) -> Value:
        """What is known of a tensor; nothing, maybe."""
        return self.known.get(name, Value())


def read(path: str | os.PathLike[str]) -> Network:
    """Read a file, infer its shapes, find its constants. Weights are not looked at.

    Raises:
        FileFormatError: it is no ONNX file.
    """
    where = os.fspath(path)
    try:
        model = onnx.load(where, load_external_data=False)
        if not model.graph.node and not model.graph.input:
            raise ValueError("no graph in it")
    except Exception as error:  # protobuf's errors share no base with the file system's
        raise FileFormatError("this is no ONNX file", where=where, seen=str(error).splitlines()[0][:200]) from error
    model = _with_shapes(model)
    opset = max((int(entry.version) for entry in model.opset_import if entry.domain in STANDARD), default=0)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = tuple(value.name for value in graph.input if value.name not in weights)
    network = Network(where, opset, inputs, tuple(value.name for value in graph.output))
    _add_graph(network, graph, 0)
    return network


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    if model.ByteSize() > _LARGE:
        return model
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # what it says of an invalid model is the checker's to say; shapes stay unknown here
        return model


def _add_graph(network: Network, graph: onnx.GraphProto, depth: int) -> None:
    for tensor in graph.initializer:
        network.constants.add(tensor.name)
        name = TensorProto.DataType.Name(tensor.data_type)
        network.known[tensor.name] = Value(tuple(tensor.dims), name)
        if math.prod(tensor.dims) <= _FOLDED and tensor.data_location != TensorProto.EXTERNAL:
            network.values[tensor.name] = numpy_helper.to_array(tensor)
    for value in (*graph.input, *graph.value_info, *graph.output):
        network.known.setdefault(value.name, _value(value))
    for index, proto in enumerate(graph.node):
        _add_node(network, proto, index, depth)


def _add_node(network: Network, proto: onnx.NodeProto, index: int, depth: int) -> None:
    given = onnx_nodes.attributes(proto)
    bodies = [body for value in given.values() for body in onnx_nodes.bodies(value)]
    plain = {name: value for name, value in given.items() if not any(onnx_nodes.bodies(value))}
    name = proto.name or f"{proto.op_type}_{index}"
    node = Node(
        name, proto.op_type, proto.domain, tuple(proto.input), tuple(proto.output), _decoded(plain), network, depth
    )
    network.nodes.append(node)
    network.quantised |= node.op == "DequantizeLinear"
    _follow_constants(network, node, bool(bodies))
    for body in bodies:
        _add_graph(network, body, depth + 1)


def _follow_constants(network: Network, node: Node, has_body: bool) -> None:
    """Note what a node makes of constants; of its values only what an op that copies passes on."""
    given = [name for name in node.inputs if name]
    shape = node.shape() if node.op == "Shape" and not node.attributes else None
    if shape is not None and None not in shape:
        network.constants.add(node.outputs[0])
        network.values[node.outputs[0]] = np.asarray(shape, dtype=np.int64)
        return
    if has_body or node.domain not in STANDARD or any(name not in network.constants for name in given):
        return
    if not given and node.op not in ("Constant", "ConstantOfShape"):  # random numbers are none
        return
    network.constants.update(name for name in node.outputs if name)
    if node.op == "Constant":
        array = _constant(node.attributes)
        if array is not None:
            network.values[node.outputs[0]] = array
    elif node.op in ("Identity", "Cast") and given[0] in network.values:
        network.values[node.outputs[0]] = network.values[given[0]]


def _constant(attributes: Mapping[str, Any]) -> NDArray[Any] | None:
    tensor = attributes.get("value")
    if isinstance(tensor, TensorProto):
        return numpy_helper.to_array(tensor) if math.prod(tensor.dims) <= _FOLDED else None
    plain = [value for name, value in attributes.items() if name in ("value_int", "value_ints", "value_float")]
    return np.asarray(plain[0]) if plain else None


def _decoded(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}


def _value(info: onnx.ValueInfoProto) -> Value:
    kind = info.type.tensor_type
    dtype = TensorProto.DataType.Name(kind.elem_type) if kind.elem_type else None
    if not kind.HasField("shape"):
        return Value(None, dtype)
    return Value(tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim), dtype)
