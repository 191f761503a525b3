"""Contractions: they read the channels of an input and hand out those of a weight (convolution, linear, matmul, attention)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from effp_fx import graph
from effp_fx.ops.context import Call, Context, Facets, line_facet
from effp_fx.ops.elementwise import combine
from effp_fx.ops.shadow import Shadow, crop, is_empty, leaky, varying
from effp_fx.ops.table import Factors, Kept, add

UNCOUPLED = "the other side of this product has no channels along the contracted dimension"


# -- products of two tensors --------------------------------------------------------------------------------------------


def contract(
    context: Context, call: Call, sides: Sequence[tuple[Shadow, str]], out: str, shape: tuple[int, ...]
) -> Facets:
    """The facets of a product of two tensors, dimensions named by letters as in einsum.

    A letter that the result lacks is summed over: its channels on both sides are united. Where they also vary along a
    letter that both sides and the result share (the heads of attention), whole heads go, because the scale of the
    scores is a function of what is left of a head.
    """
    shared = {letter for letter in sides[0][1] if letter in sides[1][1]}
    batch = {letter for letter in shared if letter in out}
    sides = [(_whole_batches(context, call, shadow, letters, batch, out), letters) for shadow, letters in sides]
    for letter in sorted({*sides[0][1], *sides[1][1]} - {*out}):
        _join(context, call, sides, letter)
    views = [_result_view(shadow, letters, out, shape) for shadow, letters in sides]
    return combine(context, call, views, shape, "mul")


def _whole_batches(context: Context, call: Call, shadow: Shadow, letters: str, batch: set[str], out: str) -> Shadow:
    """Unite what lies within one batch index where a facet varies along it and along a contracted dimension."""
    facets = []
    for facet in shadow.facets:
        along = varying(facet)
        over = [dim for dim in along if letters[dim] not in out]
        heads = [dim for dim in along if letters[dim] in batch]
        if over and heads:
            small = crop(facet)
            rows = small.movedim(heads, tuple(range(len(heads)))).reshape(
                math.prod(facet.shape[dim] for dim in heads), -1
            )
            partial = (rows == 0).any(1)
            context.freeze(call, rows[partial], "only a part of this head belongs to a channel")
            context.unite(rows[:, :1].expand(rows.shape).contiguous(), rows.contiguous())
            first = rows[:, 0].abs() * torch.where((rows < 0).any(1), -1, 1)
            view = [facet.shape[dim] if dim in heads else 1 for dim in range(facet.dim())]
            facet = torch.where(partial, 0, first).to(torch.int32).reshape(view).expand(facet.shape)
        if not is_empty(facet):
            facets.append(facet)
    return Shadow(shadow.shape, tuple(facets), shadow.from_input)


def _join(context: Context, call: Call, sides: Sequence[tuple[Shadow, str]], letter: str) -> None:
    vectors: list[Tensor] = []
    safe: list[Tensor] = []
    present = [(shadow, letters.index(letter)) for shadow, letters in sides if letter in letters]
    for shadow, dim in present:
        vector = context.vector(call, shadow, dim)
        if vector is None:
            continue
        if not shadow.from_input:
            context.consume(vector)
        vectors.append(vector)
        safe.append((vector > 0) if shadow.from_input else torch.zeros_like(vector, dtype=torch.bool))
    if not vectors:
        return
    if len(vectors) < len(present):
        context.freeze(call, vectors, UNCOUPLED)
        return
    zero = torch.stack(safe).any(0)
    leaking = ~zero & (vectors[0] != 0)
    if bool(leaking.any()):
        context.freeze(
            call, [vector[leaking] for vector in vectors], "not zero while masked, and this op would see the value"
        )
    if len(vectors) == 2:
        context.match(call, vectors[0], vectors[1], UNCOUPLED)


def _result_view(shadow: Shadow, letters: str, out: str, shape: tuple[int, ...]) -> Shadow:
    """What is left of a side's facets in the result, whose dimensions are named by `out`."""
    own = [shadow.shape[letters.index(letter)] if letter in letters else 1 for letter in out]
    facets = []
    for facet in shadow.facets:
        if any(letters[dim] not in out for dim in varying(facet)):
            continue
        small = crop(facet)
        kept = [dim for dim in range(facet.dim()) if letters[dim] in out]
        for dim in sorted(set(range(facet.dim())) - set(kept), reverse=True):
            small = small.squeeze(dim)
        names = [letters[dim] for dim in kept]
        order = sorted(range(len(kept)), key=lambda position: out.index(names[position]))
        small = small.permute(order)
        view = [small.shape[sorted(names, key=out.index).index(letter)] if letter in names else 1 for letter in out]
        facets.append(small.reshape(view).expand(own))
    return Shadow(tuple(own), tuple(facets), shadow.from_input)


def _letters(left: int, right: int) -> tuple[str, str, str]:
    """The letters of torch.matmul for operands of these ranks."""
    batch = "abcdefgh"
    one = batch[8 - max(left - 2, 0) :] + ("mk" if left > 1 else "k")
    two = batch[8 - max(right - 2, 0) :] + ("kn" if right > 1 else "k")
    longest = batch[8 - max(left - 2, right - 2, 0) :]
    return one, two, longest + ("m" if left > 1 else "") + ("n" if right > 1 else "")


def product(context: Context, call: Call) -> Facets:
    """Matrix product: the inner dimensions are united, the outer ones pass."""
    left, right = call.first("self", "input"), call.first("other", "mat2", "batch2", "vec2", "vec", "tensor")
    return _product(context, call, call.shadow(left), call.shadow(right))


def _product(context: Context, call: Call, left: Shadow, right: Shadow) -> Facets:
    one, two, out = _letters(len(left.shape), len(right.shape))
    return contract(context, call, [(left, one), (right, two)], out, call.out.shape)


def added_product(context: Context, call: Call) -> Facets:
    """bias + a @ b."""
    left, right = call.first("mat1", "batch1"), call.first("mat2", "batch2")
    result = _product(context, call, call.shadow(left), call.shadow(right))
    bias = call.shadow(call["self"])
    return combine(context, call, [Shadow(call.out.shape, tuple(result)), bias], call.out.shape, "add")


def einsum(context: Context, call: Call) -> Facets:
    """Einsum of one or two tensors without ellipsis or repeated letters; anything else pins."""
    equation = str(call["equation"]).replace(" ", "")
    tensors = [call.shadow(node) for node in call["tensors"]]
    sides, _, out = equation.partition("->")
    letters = sides.split(",")
    plain = "->" in equation and "." not in equation and all(len(set(side)) == len(side) for side in letters)
    if not plain or len(tensors) != 2:
        return context.pin(call, "an einsum of this form is not analysed")
    return contract(context, call, list(zip(tensors, letters, strict=True)), out, call.out.shape)


def linear(context: Context, call: Call) -> Facets:
    """Reads channels along the last dimension, hands out the rows of its weight."""
    source, weight, bias = call.shadow(call["input"]), call.shadow(call["weight"]), call.shadow(call["bias"])
    lead = "abcdefgh"[: len(source.shape) - 1]
    if len(weight.shape) == 1:
        return contract(context, call, [(source, lead + "k"), (weight, "k")], lead, call.out.shape)
    result = contract(context, call, [(source, lead + "k"), (weight, "nk")], lead + "n", call.out.shape)
    if call["bias"] is None:
        return result
    return combine(context, call, [Shadow(call.out.shape, tuple(result)), bias], call.out.shape, "add")


# -- attention ------------------------------------------------------------------------------------------------------------


def attention(context: Context, call: Call) -> Facets:
    """Scaled dot product attention: whole heads go, in query, key and value together."""
    query, key, value = (call.shadow(call[name]) for name in ("query", "key", "value"))
    rank = len(query.shape)
    batch = "abcdefgh"[: rank - 2]
    if any(len(side.shape) != rank for side in (key, value)) or (
        call.first("enable_gqa") and query.shape[:-2] != key.shape[:-2]
    ):
        return context.pin(call, "attention with different numbers of heads")
    scores_shape = (*query.shape[:-1], key.shape[-2])
    heads_only = [_heads(context, call, side, call.first("scale") is None) for side in (query, key)]
    scores = contract(
        context, call, [(heads_only[0], batch + "tk"), (heads_only[1], batch + "sk")], batch + "ts", scores_shape
    )
    if call["attn_mask"] is not None:
        mask = call.shadow(call["attn_mask"])
        scores = combine(context, call, [Shadow(scores_shape, tuple(scores)), mask], scores_shape, "other")
    soft = Shadow(scores_shape, tuple(_spread_evenly(context, call, scores)))
    return contract(context, call, [(soft, batch + "ts"), (value, batch + "se")], batch + "te", call.out.shape)


def _spread_evenly(context: Context, call: Call, scores: Facets) -> Facets:
    """What is left after the softmax over the last dimension: channels along it are normalised over, so they stay."""
    passing = []
    for facet in scores:
        if facet.dim() - 1 in varying(facet):
            context.freeze(call, facet, "a softmax runs over these channels")
        else:
            passing.append(leaky(facet))
    return passing


def _heads(context: Context, call: Call, side: Shadow, scaled_by_size: bool) -> Shadow:
    """With the default scale the size of a head must stay: what varies within one head and not over heads is frozen."""
    if not scaled_by_size:
        return side
    kept = []
    for facet in side.facets:
        along = varying(facet)
        if len(side.shape) - 1 in along and not any(dim < len(side.shape) - 2 for dim in along):
            context.freeze(call, facet, "the scale of attention is computed from the size of a head")
        else:
            kept.append(facet)
    return Shadow(side.shape, tuple(kept), side.from_input)


# -- convolution ----------------------------------------------------------------------------------------------------------


def _geometry(call: Call) -> tuple[Shadow, Shadow, int, int, bool]:
    """Input and weight shadows, the channel dimension of the input, groups, and whether it is transposed."""
    source, weight = call.shadow(call["input"]), call.shadow(call["weight"])
    transposed = "transpose" in graph.op_name(call.node) or bool(call.first("transposed"))
    return source, weight, len(source.shape) - len(weight.shape) + 1, int(call["groups"]), transposed


def convolution(context: Context, call: Call) -> Facets:
    """Reads channels along one dimension, hands out those of its weight; depthwise passes them on, grouped ties groups."""
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
    if channels is not None:
        channels = context.read(call, channels)
    if channels is None or read is None:
        context.freeze(
            call, [vector for vector in (channels, read) if vector is not None], "reads a tensor without channels"
        )
    else:
        context.match(call, channels, read, "reads a tensor without channels")
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


# -- costs and sizes ------------------------------------------------------------------------------------------------------


def convolution_flops(call: Call) -> list[Factors]:
    """Two per multiply-accumulate, as torch.utils.flop_counter counts them: batch, places, kernel, weight channels."""
    source, weight, dim, _, transposed = _geometry(call)
    places = source.shape[dim + 1 :] if transposed else call.out.shape[dim + 1 :]
    constant = 2.0 * math.prod(source.shape[:dim]) * math.prod(places) * math.prod(weight.shape[2:])
    node = call["weight"]
    return [(constant, ((node, 0), (node, 1)))]


def linear_flops(call: Call) -> list[Factors]:
    """Two per multiply-accumulate."""
    source, weight = call["input"], call["weight"]
    rank = len(call.shadow(source).shape)
    rows = tuple((source, dim) for dim in range(rank - 1))
    return [(2.0, (*rows, *((weight, dim) for dim in range(len(call.shadow(weight).shape)))))]


def product_flops(call: Call) -> list[Factors]:
    """Two per multiply-accumulate of a matrix product."""
    left = call.first("mat1", "batch1") or call.first("self", "input")
    return [
        (2.0, (*((call.node, dim) for dim in range(len(call.out.shape))), (left, len(call.shadow(left).shape) - 1)))
    ]


def einsum_flops(call: Call) -> list[Factors]:
    """Two per multiply-accumulate where two tensors are contracted."""
    equation = str(call["equation"]).replace(" ", "")
    if "->" not in equation or "." in equation or len(call["tensors"]) != 2:
        return []
    sides, _, out = equation.partition("->")
    where: dict[str, tuple[fx.Node, int]] = {}
    for node, letters in zip(call["tensors"], sides.split(","), strict=True):
        for dim, letter in enumerate(letters):
            where.setdefault(letter, (node, dim))
    if set(where) == set(out):
        return []
    return [(2.0, tuple(where[letter] for letter in sorted(where)))]


def attention_flops(call: Call) -> list[Factors]:
    """The two products of attention."""
    query, key, value = call["query"], call["key"], call["value"]
    rank = len(call.shadow(query).shape)
    rows = tuple((query, dim) for dim in range(rank - 1))
    return [(2.0, (*rows, (query, rank - 1), (key, rank - 2))), (2.0, (*rows, (key, rank - 2), (value, rank - 1)))]


def convolution_sizes(kept: Kept) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A depthwise convolution has as many groups as channels are kept."""
    call = kept.call
    source, _, dim, groups, _ = _geometry(call)
    if groups == 1 or groups != source.shape[dim]:
        return call.node.args, dict(call.node.kwargs)
    left = kept.sizes(call["input"], 0)[dim]
    return tuple({**call.arguments, "groups": left}.values()), {}


CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"
add(CONVOLUTIONS, "make", convolution, flops=convolution_flops, sizes=convolution_sizes)
add("linear", "make", linear, flops=linear_flops)
add("matmul mm bmm mv dot __matmul__", "make", product, flops=product_flops)
add("addmm baddbmm addmv addbmm", "make", added_product, flops=product_flops)
add("einsum", "make", einsum, flops=einsum_flops)
add("scaled_dot_product_attention", "make", attention, flops=attention_flops)
