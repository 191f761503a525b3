"""Reads the nodes of an ONNX graph: their attributes, and what is read by the graphs that some of them hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import helper


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Name -> value."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def bodies(value: Any) -> Iterator[onnx.GraphProto]:
    """The graphs in the value of an attribute: the branches of an If, the body of a Loop."""
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, onnx.GraphProto):
            yield item


def read_inside(graph: onnx.GraphProto) -> set[str]:
    """Names that the graphs inside a graph's nodes read or hand out, wherever they come from."""
    found: set[str] = set()
    for node in graph.node:
        for body in (body for value in attributes(node).values() for body in bodies(value)):
            found |= {name for inner in body.node for name in inner.input}
            found |= {value.name for value in body.output} | read_inside(body)
    return found
