"""Ops that read, write or make elements at places: indexing, tables, broadcasts and tensors of a written size."""

from __future__ import annotations

import torch

from effp_fx import graph
from effp_fx.ops.context import Call, Context, Facets
from effp_fx.ops.elementwise import combine
from effp_fx.ops.shadow import Shadow, absolute, crop, leaky, spread, varying
from effp_fx.ops.sizes import view_sizes
from effp_fx.ops.table import add

_LARGEST_CREATED = 8192


def indexed(context: Context, call: Call) -> Facets:
    """Advanced indexing: channels along dimensions that are not indexed pass, the others stay."""
    shadow = call.shadow(call["self"])
    indices = call["indices"]
    taken: list[int] = []
    lead: int | None = None
    width = 0
    position = 0
    for index in indices:
        if index is None:
            position += 1
            continue
        rank = len(call.shadow(index).shape)
        is_mask = graph.info(index).dtype in (torch.bool, torch.uint8)
        taken += range(position, position + (rank if is_mask else 1))
        width = max(width, 1 if is_mask else rank)
        lead = position if lead is None else lead
        position += rank if is_mask else 1
    if lead is None:
        return list(shadow.facets)
    if taken != list(range(taken[0], taken[-1] + 1)):
        lead = 0
    free = [dim for dim in range(len(shadow.shape)) if dim not in taken]
    dims = {dim: rank if rank < lead else rank + width for rank, dim in enumerate(free)}
    return context.pass_along(call, shadow, dims, text="is indexed by a tensor")


def selected(context: Context, call: Call) -> Facets:
    """index_select: channels along the indexed dimension stay."""
    shadow = call.shadow(call["self"])
    dim = call["dim"] % len(shadow.shape)
    dims = {other: other for other in range(len(shadow.shape)) if other != dim}
    return context.pass_along(call, shadow, dims, text="is indexed by a tensor")


def embedded(context: Context, call: Call) -> Facets:
    """Rows of a table: its columns are channels, its rows stay."""
    table = call.shadow(call["weight"])
    return context.pass_along(call, table, {1: len(call.out.shape) - 1}, text="an entry of an embedding table")


def expanded(context: Context, call: Call) -> Facets:
    """Broadcasts the ids; a dimension that comes into being gets ids of its own, which go with what they meet."""
    source = call.shadow(call["self"])
    facets = [facet.expand(call.out.shape) for facet in source.facets]
    return facets + _fresh(context, source.shape, call.out.shape)


def _fresh(context: Context, before: tuple[int, ...], after: tuple[int, ...]) -> Facets:
    old = (*(1 for _ in range(len(after) - len(before))), *before)
    facets = []
    for dim, (one, many) in enumerate(zip(old, after, strict=True)):
        if one == 1 and many > 1:
            owner = context.ids.new("", dim, many)
            facets.append(leaky(spread(torch.arange(owner.start, owner.stop, dtype=torch.int32), dim, after)))
    return facets


def expanded_as(context: Context, call: Call) -> Facets:
    """Broadcasts the ids to the shape of another tensor; a dimension that comes into being goes with that tensor's."""
    source, model = call.shadow(call["self"]), call.shadow(call["other"])
    offset = len(model.shape) - len(source.shape)
    own = [facet.expand(call.out.shape) for facet in source.facets]
    others = [
        leaky(facet)
        for facet in model.facets
        if all(dim < offset or source.shape[dim - offset] == 1 for dim in varying(facet))
    ]
    return own + others


def created(context: Context, call: Call) -> Facets:
    """A tensor of a size written in Python: every dimension gets ids of its own, which go with what they meet."""
    shape = call.out.shape
    if graph.info(call.node).dtype.is_floating_point and max(shape, default=0) <= _LARGEST_CREATED:
        facets = _fresh(context, (1,) * len(shape), shape)
        return [absolute(facet) for facet in facets] if _is_zero(call) else facets
    return []


def _is_zero(call: Call) -> bool:
    return "zeros" in graph.op_name(call.node) or "empty" in graph.op_name(call.node) or call.first("fill_value") == 0


def put(context: Context, call: Call) -> Facets:
    """x[index] = values, indexed along the leading dimensions: channels along the others are united."""
    target, values = call.shadow(call["self"]), call.shadow(call["values"])
    indices = call["indices"]
    masks = [graph.info(index).dtype in (torch.bool, torch.uint8) for index in indices if index is not None]
    if None in indices or (any(masks) and len(masks) > 1):
        return context.pin(call, "is written at an index between other dimensions")
    taken = len(call.shadow(indices[0]).shape) if masks[0] else len(indices)
    rank, rest = len(target.shape), len(target.shape) - taken
    kept = []
    for facet in values.facets:
        if any(dim < len(values.shape) - rest for dim in varying(facet)):
            context.freeze(call, facet, "is written at places that are chosen by a tensor")
        else:
            small = crop(facet)
            lead = max(small.dim() - rest, 0)
            shape = (*values.shape[lead:],)
            kept.append(small.reshape(small.shape[lead:]).expand(shape))
    for facet in target.facets:
        if any(dim < taken for dim in varying(facet)):
            context.freeze(call, facet, "is written into at places that are chosen by a tensor")
    own = tuple(facet for facet in target.facets if all(dim >= taken for dim in varying(facet)))
    source = Shadow(values.shape[max(len(values.shape) - rest, 0) :], tuple(kept))
    view = Shadow(
        (*(1 for _ in range(taken)), *target.shape[taken:]),
        tuple(crop(f).expand((*(1,) * taken, *target.shape[taken:])) for f in own),
    )
    merged = combine(context, call, [view, source], (*(1,) * taken, *target.shape[taken:]), "add")
    return [facet.expand(call.out.shape) for facet in merged if rank]


def scattered_slice(context: Context, call: Call) -> Facets:
    """slice_scatter, select_scatter: both sides stay."""
    return context.pin(call, "is written into a part of another tensor")


add("expand broadcast_to", "move", expanded, sizes=view_sizes, creates=True)
add("expand_as", "move", expanded_as)
add("index", "move", indexed)
add("index_select", "move", selected)
add("embedding", "make", embedded)
add("slice_scatter select_scatter", "pin", scattered_slice)
add("zeros ones full empty new_zeros new_ones new_full new_empty", "move", created, sizes=view_sizes, creates=True)
add("index_put", "tie", put)
