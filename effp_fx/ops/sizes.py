"""New arguments for calls that have sizes written into them, counted in the channels that are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from effp_fx import graph
from effp_fx.ops.context import Call
from effp_fx.ops.table import Kept

NewCall = tuple[tuple[Any, ...], dict[str, Any]]


def _out_shape(kept: Kept) -> tuple[int, ...]:
    return kept.sizes(kept.call.node, 0)


def _rebuilt(call: Call, **changes: Any) -> NewCall:
    positional, keywords = [], {}
    for argument in call.node.target._schema.arguments:  # type: ignore[union-attr]  # only aten ops have rows here
        value = changes.get(argument.name, call.arguments[argument.name])
        if argument.kwarg_only:
            keywords[argument.name] = value
        else:
            positional.append(value)
    return tuple(positional), keywords


def view_sizes(kept: Kept) -> NewCall:
    """The compact shape, dimension by dimension; -1 stays."""
    name = "size" if "size" in kept.call.arguments else "shape"
    old = kept.call[name]
    new = [size if size == -1 else left for size, left in zip(old, _out_shape(kept), strict=True)]
    return _rebuilt(kept.call, **{name: new})


def unflatten_sizes(kept: Kept) -> NewCall:
    """The compact sizes of the new dimensions."""
    call = kept.call
    dim = call["dim"] % len(call.shadow(call["self"]).shape)
    left = _out_shape(kept)[dim : dim + len(call["sizes"])]
    return _rebuilt(call, sizes=[size if size == -1 else now for size, now in zip(call["sizes"], left, strict=True)])


def split_sizes(kept: Kept) -> NewCall:
    """The compact size of each part."""
    call = kept.call
    dim = (call.first("dim") or 0) % len(call.outs[0].shape)
    return (call.first("self"), [kept.sizes(call.node, part)[dim] for part in range(len(call.outs))], dim), {}


def slice_sizes(kept: Kept) -> NewCall:
    """Start and end, counted in kept indices."""
    call = kept.call
    source = call["self"]
    dim = call["dim"] % len(call.out.shape)
    flags = kept.indices(source, 0, dim)
    if all(flags):
        return call.node.args, dict(call.node.kwargs)
    size = len(flags)
    start, end = (_clip(value, size, default) for value, default in ((call["start"], 0), (call["end"], size)))
    return _rebuilt(call, start=sum(flags[:start]), end=sum(flags[:end]))


def select_sizes(kept: Kept) -> NewCall:
    """The position among the kept indices."""
    call = kept.call
    flags = kept.indices(call["self"], 0, call["dim"] % len(call.shadow(call["self"]).shape))
    index = call["index"] % len(flags)
    return _rebuilt(call, index=sum(flags[:index]))


def narrow_sizes(kept: Kept) -> NewCall:
    """Start and length, counted in kept indices."""
    call = kept.call
    flags = kept.indices(call["self"], 0, call["dim"] % len(call.out.shape))
    start = call["start"]
    return _rebuilt(call, start=sum(flags[:start]), length=sum(flags[start : start + call["length"]]))


def squeeze_sizes(kept: Kept) -> NewCall:
    """Only the dimensions of dense size 1 are dropped, not one of which a single channel is left."""
    call = kept.call
    shape = call.shadow(call["self"]).shape
    if "dim" in call.arguments:
        return call.node.args, dict(call.node.kwargs)
    return (call["self"], [dim for dim, size in enumerate(shape) if size == 1]), {}


def _clip(value: Any, size: int, default: int) -> int:
    if not isinstance(value, int):
        return default
    return max(0, min(size, value + size if value < 0 else value))


SPLIT_TARGET = torch.ops.aten.split_with_sizes.default
SQUEEZE_TARGET = torch.ops.aten.squeeze.dims
"""What the calls below become once their sizes are spelled out."""
_BY_COUNT = frozenset(
    f"aten.{name}" for name in ["split", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_with_sizes"]
)


def spelled_out(node: fx.Node) -> Any:
    """The op to call with the new arguments: cuts by count become cuts by sizes."""
    name = graph.op_name(node)
    if name in _BY_COUNT:
        return SPLIT_TARGET
    if name == "aten.squeeze" and not node.args[1:] and not node.kwargs:
        return SQUEEZE_TARGET
    return node.target
