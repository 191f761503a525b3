"""Movement ops: they are run on the shadows themselves, so index maps through any view, cat or shuffle come out exact."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx

from effp_fx import graph
from effp_fx.ops.context import Call, Context, Facets
from effp_fx.ops.elementwise import combine
from effp_fx.ops.shadow import Shadow, absolute, compress, crop, flat, is_empty, leaky, moved, spread, varying
from effp_fx.ops.table import Kept, add

_LARGEST_CREATED = 8192
NewCall = tuple[tuple[Any, ...], dict[str, Any]]


def _facets(call: Call) -> tuple[Tensor, ...]:
    return call.shadow(call.first("self", "input")).facets


def reshaped(context: Context, call: Call) -> Facets:
    """Runs the reshape on the ids."""
    return [moved(facet, lambda ids: ids.reshape(call.out.shape)) for facet in _facets(call)]


def rearranged(context: Context, call: Call) -> Facets:
    """Runs the op on the ids: no element is lost, none is copied twice."""
    return _run(call)


def cut(context: Context, call: Call) -> Facets:
    """Runs the op on the ids; what is cut out keeps at least one channel."""
    facets = _run(call)
    _remember(context, [facets])
    return facets


def sliced(context: Context, call: Call) -> Facets:
    """A slice with a step over channels cannot be written for what is left of them, so those stay."""
    if call["step"] != 1:
        dim = call["dim"] % len(call.out.shape)
        for facet in _facets(call):
            if dim in varying(facet):
                context.freeze(call, facet, "every n-th channel is taken")
    return cut(context, call)


def _run(call: Call) -> Facets:
    values = dict(call.arguments)
    name = "self" if "self" in values else "input"
    results = []
    for facet in _facets(call):
        values[name] = facet
        results.append(compress(_call(call, values)))
    return [facet for facet in results if not is_empty(facet)]


def _call(call: Call, values: dict[str, Any]) -> Any:
    positional, keywords = [], {}
    for argument in call.node.target._schema.arguments:  # type: ignore[union-attr]  # only aten ops have rows here
        if argument.kwarg_only:
            keywords[argument.name] = values[argument.name]
        else:
            positional.append(values[argument.name])
    return call.node.target(*positional, **keywords)  # type: ignore[operator]  # an OpOverload


def _remember(context: Context, parts: list[Facets]) -> None:
    for facets in parts:
        for facet in facets:
            context.parts.append(flat(facet))


def divided(context: Context, call: Call) -> list[Facets]:
    """Cuts into parts along one dimension: equal parts that the call does not size one by one stay equal."""
    name = graph.op_name(call.node)
    dim = call.first("dim") or 0
    sizes = [out.shape for out in call.outs]
    parts: list[Facets] = [[] for _ in sizes]
    for facet in _facets(call):
        along = dim % facet.dim()
        if name == "aten.unbind":
            pieces = list(facet.unbind(along))
        else:
            pieces = list(facet.split([shape[along] for shape in sizes], along))
            if "sizes" not in name and along in varying(facet):
                pieces = _level(context, call, pieces, along)
        for part, piece in zip(parts, pieces, strict=True):
            piece = compress(piece)
            if not is_empty(piece):
                part.append(piece)
    _remember(context, parts)
    return parts


def _level(context: Context, call: Call, pieces: list[Tensor], dim: int) -> list[Tensor]:
    """Unite the same position of every part; a last, shorter part freezes what cannot be paired."""
    if len({piece.shape for piece in pieces}) > 1:
        for piece in pieces:
            context.freeze(call, piece, "is cut into parts of unequal size by a number")
        return pieces
    for piece in pieces[1:]:
        context.match(call, pieces[0], piece, "another part has no channel at this position")
    return pieces


def joined(context: Context, call: Call) -> Facets:
    """Concatenates the ids."""
    shadows = [call.shadow(node) for node in call["tensors"]]
    shadows = [shadow for shadow in shadows if shadow.shape != (0,)]
    dim = (call.first("dim", "axis") or 0) % len(call.out.shape)
    shape = call.out.shape
    results = []
    for layer in itertools.zip_longest(*(_ordered(shadow.facets, dim) for shadow in shadows)):
        along = {other for facet in layer if facet is not None for other in varying(facet)} - {dim}
        small = [1 if other not in along else shape[other] for other in range(len(shape))]
        pieces = []
        for shadow, facet in zip(shadows, layer, strict=True):
            size = [*small]
            size[dim] = shadow.shape[dim]
            zero = torch.zeros((), dtype=torch.int32)
            pieces.append((zero if facet is None else crop(facet, (*along, dim))).expand(size))
        results.append(compress(torch.cat(pieces, dim)).expand(shape))
    return [facet for facet in results if not is_empty(facet)]


def _ordered(facets: tuple[Tensor, ...], dim: int) -> list[Tensor]:
    """Facets that vary along the joined dimension first, so that alike ones meet."""
    return sorted(facets, key=lambda facet: (dim not in varying(facet), varying(facet)))


def stacked(context: Context, call: Call) -> Facets:
    """Stacks the ids along a new dimension."""
    shadows = [call.shadow(node) for node in call["tensors"]]
    dim = call["dim"] % len(call.out.shape)
    results = []
    for layer in itertools.zip_longest(*(_ordered(shadow.facets, -1) for shadow in shadows)):
        blank = torch.zeros((), dtype=torch.int32).expand(shadows[0].shape)
        along = tuple({other for facet in layer if facet is not None for other in varying(facet)})
        pieces = [crop(blank if facet is None else facet, along) for facet in layer]
        results.append(compress(torch.stack(pieces, dim)).expand(call.out.shape))
    return [facet for facet in results if not is_empty(facet)]


def repeated(context: Context, call: Call) -> Facets:
    """Repeats the ids; channels along a repeated dimension appear several times."""
    return _run(call)


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
    if None in indices or any(masks) and len(masks) > 1:
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
    view = Shadow((*(1 for _ in range(taken)), *target.shape[taken:]), tuple(crop(f).expand((*(1,) * taken, *target.shape[taken:])) for f in own))
    merged = combine(context, call, [view, source], (*(1,) * taken, *target.shape[taken:]), "add")
    return [facet.expand(call.out.shape) for facet in merged if rank]


def scattered_slice(context: Context, call: Call) -> Facets:
    """slice_scatter, select_scatter: both sides stay."""
    return context.pin(call, "is written into a part of another tensor")


def unfolded(context: Context, call: Call) -> Facets:
    """im2col: each channel becomes kernel-size many rows."""
    shadow = call.shadow(call["self"])
    dim = len(shadow.shape) - 3
    vector = context.vector(call, shadow, dim)
    for facet in shadow.facets:
        if dim not in varying(facet):
            context.freeze(call, facet, "lies along a dimension that is unfolded")
    if vector is None:
        return []
    rows = vector.repeat_interleave(call.out.shape[dim] // shadow.shape[dim])
    view = [1] * len(call.out.shape)
    view[dim] = rows.numel()
    return [rows.reshape(view).expand(call.out.shape)]


# -- sizes written into the call ------------------------------------------------------------------------------------------


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
"""What the calls above become once their sizes are spelled out."""


def spelled_out(node: fx.Node) -> Any:
    """The op to call with the new arguments: cuts by count become cuts by sizes."""
    name = graph.op_name(node)
    if name in ("aten.split", "aten.chunk", "aten.tensor_split", "aten.unsafe_split", "aten.unsafe_chunk", "aten.split_with_sizes"):
        return SPLIT_TARGET
    if name == "aten.squeeze" and not node.args[1:] and not node.kwargs:
        return SQUEEZE_TARGET
    return node.target


add("view reshape _unsafe_view _reshape_alias view_as reshape_as flatten ravel", "move", reshaped)
add("view reshape _unsafe_view", "move", reshaped, sizes=view_sizes)
add("unflatten", "move", reshaped, sizes=unflatten_sizes)
add("permute transpose t numpy_T mT moveaxis movedim swapaxes swapdims flip roll unsqueeze adjoint", "move", rearranged)
add("squeeze", "move", rearranged, sizes=squeeze_sizes)
add("pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle rot90", "move", rearranged)
add("expand broadcast_to", "move", expanded, sizes=view_sizes, creates=True)
add("expand_as", "move", expanded_as)
add("slice", "move", sliced, sizes=slice_sizes)
add("select", "move", cut, sizes=select_sizes)
add("narrow", "move", cut, sizes=narrow_sizes)
add("diagonal unfold", "move", cut)
add("split chunk tensor_split unsafe_split unsafe_chunk split_with_sizes hsplit vsplit dsplit", "move", divided, sizes=split_sizes)
add("unbind", "move", divided)
add("cat concat concatenate", "move", joined)
add("stack", "move", stacked)
add("repeat tile repeat_interleave", "move", repeated)
add("index", "move", indexed)
add("index_select", "move", selected)
add("embedding", "make", embedded)
add("im2col", "move", unfolded)
add("slice_scatter select_scatter", "pin", scattered_slice)
add("zeros ones full empty new_zeros new_ones new_full new_empty", "move", created, sizes=view_sizes, creates=True)
add("index_put", "tie", put)


