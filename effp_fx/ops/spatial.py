"""Ops over places: pooling, resizing, padding, sampling and regions of interest pass channels on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from effp_fx.ops.context import Call, Context, Facets, line_facet
from effp_fx.ops.convolution import convolution_flops
from effp_fx.ops.elementwise import combine
from effp_fx.ops.shadow import Shadow, compress, is_empty, leaky, varying
from effp_fx.ops.table import add

SLIDES = "lies along a dimension of places, not of channels"


def _leading(context: Context, call: Call, shadow: Shadow, places: int) -> Facets:
    """Facets along the dimensions before the places pass; others are frozen."""
    lead = len(shadow.shape) - places
    return context.pass_along(call, shadow, {dim: dim for dim in range(lead)}, text=SLIDES)


def _pool(places: int) -> Any:
    def rule(context: Context, call: Call) -> Any:
        facets = _leading(context, call, call.shadow(call.first("self", "input")), places)
        return [facets, [leaky(facet) for facet in facets]] if len(call.outs) > 1 else facets

    rule.__doc__ = "Pools places of each channel by itself."
    return rule


def resized(context: Context, call: Call) -> Facets:
    """Resizes each channel by itself."""
    shadow = call.shadow(call.first("input", "self"))
    return _leading(context, call, shadow, len(shadow.shape) - 2)


def padded(context: Context, call: Call) -> Facets:
    """Padding with zeros passes channels on; along the channels themselves it adds indices that belong to none."""
    shadow = call.shadow(call["self"])
    pad = list(call.first("pad", "padding"))
    value = call.first("value")
    constant = call.first("mode") in (None, "constant")
    zero = value in (None, 0, 0.0) or not constant  # other modes repeat places
    results: list[Tensor] = []
    rank = len(shadow.shape)
    widths = {rank - 1 - index // 2: (pad[index], pad[index + 1]) for index in range(0, len(pad), 2)}
    for facet in shadow.facets:
        along = [dim for dim in varying(facet) if any(widths.get(dim, (0, 0)))]
        if along and (not zero or not constant or any(min(widths[dim]) < 0 for dim in along)):
            context.freeze(call, facet, "is padded along the channels with something else than zeros")
            continue
        result = facet
        for dim in range(rank):
            before, after = widths.get(dim, (0, 0))
            if not before and not after:
                continue
            if dim in along:
                shape = [*result.shape]
                parts = []
                for width, piece in ((before, None), (0, result), (after, None)):
                    shape[dim] = width
                    parts.append(result.new_zeros(()).expand(shape) if piece is None else piece)
                result = compress(torch.cat(parts, dim))
            else:
                shape = [*result.shape]
                shape[dim] = call.out.shape[dim]
                result = result.narrow(dim, 0, 1).expand(shape)
        results.append(result if zero else leaky(result))
    return [facet for facet in results if not is_empty(facet)]


def mirrored(context: Context, call: Call) -> Facets:
    """Reflection, replication and circular padding repeat places of each channel by itself."""
    shadow = call.shadow(call["self"])
    return _leading(context, call, shadow, len(call["padding"]) // 2)


def sampled(context: Context, call: Call) -> Facets:
    """grid_sample: channels of the image pass, those of the grid stay."""
    image, grid = call.shadow(call["input"]), call.shadow(call["grid"])
    context.freeze(call, grid.facets, "is used as coordinates")
    return context.pass_along(call, image, {1: 1}, text=SLIDES)


def pooled_regions(context: Context, call: Call) -> Any:
    """Regions of interest: channels of the feature map pass, boxes stay."""
    image = call.shadow(call.first("input"))
    context.freeze(call, call.shadow(call.first("rois")).facets, "is used as boxes")
    facets = context.pass_along(call, image, {1: 1}, text=SLIDES)
    return [facets, [leaky(facet) for facet in facets]] if len(call.outs) > 1 else facets


def deformed(context: Context, call: Call) -> Facets:
    """Deformable convolution: a convolution whose offsets and masks stay."""
    for name in ("offset", "mask"):
        context.freeze(call, call.shadow(call[name]).facets, "is used as an offset")
    source, weight = call.shadow(call["input"]), call.shadow(call["weight"])
    for facet in weight.facets:
        if any(dim > 1 for dim in varying(facet)):
            context.freeze(call, facet, "a position within the kernel")
    for facet in source.facets:
        if 1 not in varying(facet):
            context.freeze(call, facet, SLIDES)
    made, read = context.vector(call, weight, 0), context.vector(call, weight, 1)
    channels = context.vector(call, source, 1)
    if call["groups"] != 1 or call["offset_groups"] != 1 or channels is None or read is None:
        context.freeze(call, [v for v in (channels, read) if v is not None], "a deformable convolution with groups")
        if call["groups"] != 1:
            context.freeze(call, weight.facets, "a deformable convolution with groups")
    else:
        context.consume(read)
        context.match(call, context.read(call, channels, read), read, "reads a tensor without channels")
    facets = line_facet(made, 1, call.out.shape)
    bias = call.shadow(call["bias"])
    view = (1, weight.shape[0], 1, 1)
    along = Shadow(view, tuple(facet.reshape(view) for facet in bias.facets), from_input=False)
    return combine(context, call, [Shadow(call.out.shape, tuple(facets)), along], call.out.shape, "add")


for _rank in (1, 2, 3):
    add(
        f"max_pool{_rank}d max_pool{_rank}d_with_indices avg_pool{_rank}d lp_pool{_rank}d "
        f"adaptive_avg_pool{_rank}d _adaptive_avg_pool{_rank}d adaptive_max_pool{_rank}d",
        "pass",
        _pool(_rank),
    )
add(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    "pass",
    resized,
)
add("constant_pad_nd pad", "pass", padded)
add(
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    "pass",
    mirrored,
)
add("grid_sampler grid_sampler_2d grid_sampler_3d", "pass", sampled)
add("torchvision.roi_align torchvision.roi_pool", "pass", pooled_regions)
add("torchvision.deform_conv2d", "make", deformed, flops=convolution_flops)
