"""Products: they read the channels of one side and hand out those of the other (linear, matmul, einsum)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from effp_fx.ops.context import SEEN, Call, Context, Facets
from effp_fx.ops.elementwise import combine
from effp_fx.ops.shadow import Shadow, crop, is_empty, varying
from effp_fx.ops.table import Factors, add

UNCOUPLED = "the other side of this product has no channels along the contracted dimension"


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
    weights: list[Tensor] = []
    safe: list[Tensor] = []
    present = [(shadow, letters.index(letter)) for shadow, letters in sides if letter in letters]
    for shadow, dim in present:
        vector = context.vector(call, shadow, dim)
        if vector is None:
            continue
        if not shadow.from_input:
            context.consume(vector)
            weights.append(vector)
        vectors.append(vector)
        safe.append((vector > 0) if shadow.from_input else torch.zeros_like(vector, dtype=torch.bool))
    if not vectors:
        return
    if len(vectors) < len(present):
        context.freeze(call, vectors, UNCOUPLED)
        return
    zero = torch.stack(safe).any(0)
    leaking = ~zero & (vectors[0] != 0)
    for vector in weights:
        context.silence(vector[leaking & (vector > 0)])
        leaking = leaking & (vector <= 0)
    if bool(leaking.any()):
        context.freeze(call, [vector[leaking] for vector in vectors], SEEN)
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


add("linear", "make", linear, flops=linear_flops)
add("matmul mm bmm mv dot __matmul__", "make", product, flops=product_flops)
add("addmm baddbmm addmv addbmm", "make", added_product, flops=product_flops)
add("einsum", "make", einsum, flops=einsum_flops)
