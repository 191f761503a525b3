"""The work of each layer, and what rounding its channels up to what the hardware works in would add to it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from effp_fx.export.tensorrt.network import Node, Shape

MULTIPLES = {"FP16": 8, "DLA": 16, "INT8": 32}
"""Channels that are worked on together: tensor cores in FP16 and INT8, the DLA in FP16 (32 in INT8)."""

_IMAGE = 4
"""So many channels an image has at most: nobody rounds those up, and the hardware has ways of its own for them."""


@dataclass(frozen=True)
class OddLayer:
    """A convolution with a channel count that is no multiple."""

    name: str
    inputs: int
    outputs: int
    macs: int
    padded_macs: int


@dataclass(frozen=True)
class ChannelCost:
    """All convolutions against one multiple. The hardware pads; what is padded is computed all the same."""

    multiple: int
    layers: int
    """Convolutions looked at; depthwise ones have no channels to combine and are not among them."""
    odd: tuple[OddLayer, ...]
    macs: int
    padded_macs: int

    @property
    def extra(self) -> float:
        """What rounding up adds, as a part of the work of these layers."""
        return self.padded_macs / self.macs - 1 if self.macs else 0.0


def macs(node: Node) -> int:
    """Multiply-accumulates of a node for a batch of 1 where the batch is free; 0 for what has none or is unknown."""
    if node.op == "Conv":
        return _product(node.output_shape()) * _product((node.shape(1) or (0,))[1:])
    if node.op == "ConvTranspose":
        return _product(node.shape()) * _product((node.shape(1) or (0,))[1:])
    if node.op in ("Gemm", "MatMul"):
        shape = node.shape()
        inner = shape[0 if node.attributes.get("transA") else -1] if shape else 0
        return _product(node.output_shape()) * (inner or 0)
    return 0


def costs(nodes: Iterable[Node]) -> dict[str, ChannelCost]:
    """For each precision what rounding up every convolution would cost."""
    layers = [layer for node in nodes for layer in [_layer(node)] if layer is not None]
    return {name: _cost(layers, multiple) for name, multiple in MULTIPLES.items()}


def _layer(node: Node) -> tuple[str, int, int, int, bool] | None:
    """Name, channels in and out of one group, MACs, whether it reads an image."""
    weight, groups = node.shape(1), int(node.attributes.get("group", 1))
    if node.op != "Conv" or not weight or None in weight:
        return None
    outputs, inputs = (weight[0] or 0) // groups, weight[1] or 0
    if groups > 1 and outputs == inputs == 1:
        return None
    return node.name, inputs, outputs, macs(node), inputs <= _IMAGE


def _cost(layers: list[tuple[str, int, int, int, bool]], multiple: int) -> ChannelCost:
    odd, total, padded = [], 0, 0
    for name, inputs, outputs, work, first in layers:
        wide = inputs if first else _up(inputs, multiple)
        more = work * wide * _up(outputs, multiple) // (inputs * outputs)
        total, padded = total + work, padded + more
        if (wide, _up(outputs, multiple)) != (inputs, outputs):
            odd.append(OddLayer(name, inputs, outputs, work, more))
    return ChannelCost(multiple, len(layers), tuple(odd), total, padded)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _product(shape: Shape | None) -> int:
    """The first dimension may be free (it counts as 1), the others have to be known."""
    if not shape or None in shape[1:]:
        return 0
    return math.prod(1 if size is None else size for size in shape)
