"""Convolutions of every rank: dense, grouped, depthwise, and transposed ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from effp_fx import graph
from effp_fx.ops.context import Call, Context, Facets, line_facet
from effp_fx.ops.elementwise import combine
from effp_fx.ops.shadow import Shadow, varying
from effp_fx.ops.table import Factors, Kept, add


def _geometry(call: Call) -> tuple[Shadow, Shadow, int, int, bool]:
    """Input and weight shadows, the channel dimension of the input, groups, and whether it is transposed."""
    source, weight = call.shadow(call["input"]), call.shadow(call["weight"])
    transposed = "transpose" in graph.op_name(call.node) or bool(call.first("transposed"))
    return source, weight, len(source.shape) - len(weight.shape) + 1, int(call["groups"]), transposed


def convolution(context: Context, call: Call) -> Facets:
    """Reads channels along one dimension, hands out its weight's; depthwise passes them on, grouped ties groups."""
    source, weight, dim, groups, transposed = _geometry(call)
    for facet in source.facets:
        if dim not in varying(facet):
            context.freeze(call, facet, "lies along a dimension that the convolution slides over or batches")
    for facet in weight.facets:
        if any(other > 1 for other in varying(facet)):
            context.freeze(call, facet, "a position within the kernel")
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    made, read = context.vector(call, weight, out_dim), context.vector(call, weight, in_dim)
    channels = context.vector(call, source, dim)
    if groups == 1:
        result = _dense(context, call, channels, read, made)
    elif groups == source.shape[dim]:
        result = _depthwise(context, call, channels, made, read, weight, transposed)
    else:
        result = _grouped(context, call, channels, read, made, groups, transposed)
    facets = line_facet(result, dim, call.out.shape)
    bias = call.shadow(call["bias"])
    if call["bias"] is None:
        return facets
    view = [1] * len(call.out.shape)
    view[dim] = call.out.shape[dim]
    along = Shadow(tuple(view), tuple(facet.reshape(view) for facet in bias.facets), from_input=False)
    return combine(context, call, [Shadow(call.out.shape, tuple(facets)), along], call.out.shape, "add")


def _dense(
    context: Context, call: Call, channels: Tensor | None, read: Tensor | None, made: Tensor | None
) -> Tensor | None:
    if read is not None:
        context.consume(read)
    if channels is None:
        context.freeze(call, [] if read is None else read, "reads a tensor without channels")
    elif read is None:
        context.freeze(call, channels, "is read by filters that need every input, as those of a standardised weight do")
    else:
        context.match(call, context.read(call, channels, read), read, "reads a tensor without channels")
    return made


def _depthwise(
    context: Context,
    call: Call,
    channels: Tensor | None,
    made: Tensor | None,
    read: Tensor | None,
    weight: Shadow,
    transposed: bool,
) -> Tensor | None:
    """One kernel per channel (times a multiplier): the channel goes through, its kernels with it."""
    groups = int(call["groups"])
    kernels = read if transposed else made
    if transposed and made is not None:  # a multiplier's positions lie on a dimension of their own
        context.freeze(call, made, "the multiplier of a transposed depthwise convolution")
    if kernels is None:
        return None
    multiplier = weight.shape[1] if transposed else weight.shape[0] // groups
    if channels is None:
        context.freeze(call, kernels, "reads a tensor without channels")
        return None
    spread_out = channels.repeat_interleave(1 if transposed else multiplier)
    united = context.match(call, spread_out, kernels, "reads a tensor without channels")
    sign = torch.where(kernels > 0, 1, -1)
    result = (united * sign).to(torch.int32)
    return result.repeat_interleave(multiplier) if transposed else result


def _grouped(
    context: Context,
    call: Call,
    channels: Tensor | None,
    read: Tensor | None,
    made: Tensor | None,
    groups: int,
    transposed: bool,
) -> Tensor | None:
    """The same position of every group goes, so that groups stay of equal size."""

    def level(vector: Tensor) -> Tensor:
        rows = vector.reshape(groups, -1)
        first = rows[:1].expand(rows.shape)
        merged = context.match(call, first.contiguous(), rows, "another group has no channel at this position")
        sign = torch.where((rows < 0).any(0), -1, 1)
        return (merged.reshape(groups, -1)[0] * sign).to(torch.int32)

    if transposed:
        read = level(read) if read is not None else None
    elif made is not None:
        made = level(made).repeat(groups)
    if transposed and made is not None:
        made = made.repeat(groups)
    _dense(context, call, level(channels) if channels is not None else None, read, made)
    return made


def convolution_flops(call: Call) -> list[Factors]:
    """Two per multiply-accumulate, as torch.utils.flop_counter counts them: batch, places, kernel, weight channels."""
    source, weight, dim, _, transposed = _geometry(call)
    places = source.shape[dim + 1 :] if transposed else call.out.shape[dim + 1 :]
    constant = 2.0 * math.prod(source.shape[:dim]) * math.prod(places) * math.prod(weight.shape[2:])
    node = call["weight"]
    return [(constant, ((node, 0), (node, 1)))]


def convolution_sizes(kept: Kept) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A depthwise convolution has as many groups as channels are kept."""
    call = kept.call
    source, _, dim, groups, _ = _geometry(call)
    if groups == 1 or groups != source.shape[dim]:
        return call.node.args, dict(call.node.kwargs)
    left = kept.sizes(call["input"], 0)[dim]
    return tuple({**call.arguments, "groups": left}.values()), {}


CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"
"""Names of the ops, as ATen has them."""

add(
    CONVOLUTIONS,
    "make",
    convolution,
    flops=convolution_flops,
    sizes=convolution_sizes,
)
