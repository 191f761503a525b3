"""Names the convolutions of an ONNX file after their modules, so that a profile taken on the board can be read.

An exporter numbers nodes. What it keeps is the order of the convolutions; where a file has not as many of them as the
graph it was written from, or one of another size, the names stay as they are.
"""

from __future__ import annotations

from collections import Counter

import onnx
from torch import fx

from effp_fx import graph
from effp_fx.ops.convolution import CONVOLUTIONS

_NODES = {"Conv", "ConvTranspose"}


def name_convolutions(model: onnx.ModelProto, part: fx.GraphModule) -> None:
    """Rename in place; a module that runs several times has its later nodes numbered: `head.0`, `head.0 (2)`."""
    wanted = [node for node in part.graph.nodes if graph.op_name(node).removeprefix("aten.") in CONVOLUTIONS.split()]
    there = [node for node in model.graph.node if node.op_type in _NODES]
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    if len(wanted) != len(there):
        return
    names = [str(node.meta.get("module", "")) for node in wanted]
    for node, made in zip(wanted, there, strict=True):
        weight = node.args[1]
        known = sizes.get(made.input[1])
        if known is not None and isinstance(weight, fx.Node) and known != graph.info(weight).shape:
            return
    seen = Counter(node.name for node in model.graph.node)
    for name, made in zip(names, there, strict=True):
        if name:
            seen[name] += 1
            made.name = name if seen[name] == 1 else f"{name} ({seen[name]})"
