"""Normalisations: gamma, beta and statistics follow the channel; where removing one would change others, it stays."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx

from effp_fx.ops.context import Call, Context, Facets, line_facet
from effp_fx.ops.elementwise import combine
from effp_fx.ops.shadow import Shadow, crop, leaky, varying
from effp_fx.ops.table import Kept, add


def batch_norm(context: Context, call: Call) -> Facets:
    """One scale, shift and pair of statistics per channel."""
    channels = _read_statistics(context, call)
    return _affine(context, call, channels, 1, ("running_mean", "running_var"), centred=False)


def _read_statistics(context: Context, call: Call) -> Tensor | None:
    source = call.shadow(call["input"])
    for facet in source.facets:
        if 1 not in varying(facet):
            context.freeze(call, facet, "lies along a dimension that the statistics are taken over")
    channels = context.vector(call, source, 1)
    for name in ("running_mean", "running_var"):
        if isinstance(call[name], fx.Node):
            context.statistics.add(str(call[name].target))
    return channels


def _affine(
    context: Context, call: Call, channels: Tensor | None, dim: int, statistics: tuple[str, ...], *, centred: bool
) -> Facets:
    """Tie scale, shift and statistics to the channels. The result is zero with scale and shift; without a scale, where
    the statistics are those of the channel itself (`centred`), it is zero where the channel is.
    """
    followers = {name: context.vector(call, call.shadow(call[name]), 0) for name in ("weight", "bias", *statistics)}
    if channels is None:
        context.freeze(
            call,
            [vector for vector in followers.values() if vector is not None],
            "normalises a tensor without channels",
        )
        return []
    silent = channels.numpy() > 0
    for vector in followers.values():
        if vector is not None:
            channels = context.match(call, channels, vector, "normalises a tensor without channels")
    weight = call["weight"]
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        context.gammas.add(str(weight.target))
    scale, shift = followers["weight"], followers["bias"]
    zero = silent & centred if scale is None else (scale.numpy() > 0) | (silent & centred)
    if call["bias"] is not None:
        zero = zero & (shift.numpy() > 0 if shift is not None else False)
    size = np.abs(channels.numpy())
    return line_facet(torch.from_numpy(np.where(zero, size, -size)), dim, call.out.shape)


def instance_norm(context: Context, call: Call) -> Facets:
    """Like a batch norm, with the statistics of each image: a channel's are its own."""
    channels = _read_statistics(context, call)
    return _affine(context, call, channels, 1, ("running_mean", "running_var"), centred=bool(call["use_input_stats"]))


def group_norm(context: Context, call: Call) -> Facets:
    """Whole statistic groups go: removing one channel would change the statistics of the rest."""
    source = call.shadow(call["input"])
    groups = int(call["num_groups"])
    for facet in source.facets:
        if 1 not in varying(facet):
            context.freeze(call, facet, "lies along a dimension that the statistics are taken over")
    channels = context.vector(call, source, 1)
    if channels is not None:
        rows = channels.reshape(groups, -1)
        if groups == 1:
            context.freeze(call, channels, "shares its statistics with every other channel")
            channels = None
        else:
            first = rows[:, :1].expand(rows.shape).contiguous()
            united = context.match(call, first, rows.contiguous(), "shares its statistics with a channel that stays")
            silent = (rows > 0).all(1, keepdim=True)
            channels = torch.where(silent, united, -united).reshape(-1)
    return _affine(context, call, channels, 1, (), centred=True)


def group_norm_sizes(kept: Kept) -> tuple[tuple[object, ...], dict[str, object]]:
    """The number of statistic groups that are left."""
    call = kept.call
    flags = kept.indices(call["input"], 0, 1)
    groups = int(call["num_groups"]) * sum(flags) // len(flags)
    return tuple({**call.arguments, "num_groups": groups}.values()), {}


def layer_norm(context: Context, call: Call) -> Facets:
    """Statistics over the channels: those stay; what lies along other dimensions passes."""
    source = call.shadow(call["input"])
    rank, width = len(source.shape), len(call["normalized_shape"])
    inner = range(rank - width, rank)
    passing = []
    for facet in source.facets:
        met = [dim for dim in varying(facet) if dim in inner]
        if met and len(met) < len(varying(facet)):
            facet = context.collapse(call, facet, met).expand(source.shape)
        if any(dim in inner for dim in varying(facet)):
            context.freeze(call, facet, "shares its statistics with every other channel")
        else:
            passing.append(facet)
    names = [name for name in ("weight", "bias") if isinstance(call.first(name), fx.Node)]
    for name in names:
        context.freeze(call, call.shadow(call[name]).facets, "follows channels that share their statistics")
    sign = -1 if "bias" in names else 1
    return [facet if sign > 0 else leaky(facet) for facet in passing]


def weight_norm(context: Context, call: Call) -> Facets:
    """g * v / |v|: rows pass, columns enter the norm of each row and stay. A mask zeroes g alone, as 0 / |0| is NaN."""
    direction, scale, dim = call.shadow(call["v"]), call.shadow(call["g"]), call["dim"]
    kept = []
    for facet in direction.facets:
        if varying(facet) == (dim,):  # -1 is not the last dimension here, it stands for a norm over everything
            context.consume(crop(facet))
            kept.append(leaky(facet))
        else:
            context.freeze(call, facet, "enters the norm of a weight")
    return combine(context, call, [scale, Shadow(direction.shape, tuple(kept), False)], call.out.shape, "mul")


def normalised(context: Context, call: Call) -> Facets:
    """softmax: values along the dimension depend on one another; elsewhere channels pass."""
    source = call.shadow(call.first("self", "input"))
    dim = call["dim"] % max(len(source.shape), 1)
    passing = []
    for facet in source.facets:
        if dim in varying(facet) and len(varying(facet)) > 1:
            # What also lies along another dimension goes as a whole row of the softmax (the branches of a selection).
            facet = context.collapse(call, facet, [dim]).expand(source.shape)
        if dim in varying(facet):
            context.freeze(call, facet, "a softmax runs over these channels")
        else:
            passing.append(leaky(facet))
    return passing


add("batch_norm cudnn_batch_norm", "carry", batch_norm)
add("instance_norm", "carry", instance_norm)
add("group_norm", "carry", group_norm, sizes=group_norm_sizes)
add("layer_norm rms_norm", "carry", layer_norm)
add("_weight_norm", "carry", weight_norm)
add("softmax log_softmax softmin _softmax _log_softmax", "reduce", normalised)
