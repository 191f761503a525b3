"""Attention in one op: whole heads go, and nothing that its softmax runs over."""

from __future__ import annotations

from effp_fx.ops.context import Call, Context, Facets
from effp_fx.ops.contraction import contract
from effp_fx.ops.elementwise import combine
from effp_fx.ops.shadow import Shadow, leaky, varying
from effp_fx.ops.table import Factors, add


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


def attention_flops(call: Call) -> list[Factors]:
    """The two products of attention."""
    query, key, value = call["query"], call["key"], call["value"]
    rank = len(call.shadow(query).shape)
    rows = tuple((query, dim) for dim in range(rank - 1))
    return [(2.0, (*rows, (query, rank - 1), (key, rank - 2))), (2.0, (*rows, (key, rank - 2), (value, rank - 1)))]


add("scaled_dot_product_attention", "make", attention, flops=attention_flops)
