"""Movement ops are run on the shadows themselves, so index maps through any view, cat or shuffle come out exact."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from effp_fx import graph
from effp_fx.ops.context import Call, Context, Facets
from effp_fx.ops.shadow import Shadow, compress, crop, flat, is_empty, moved, varying
from effp_fx.ops.sizes import (
    narrow_sizes,
    select_sizes,
    slice_sizes,
    split_sizes,
    squeeze_sizes,
    unflatten_sizes,
    view_sizes,
)
from effp_fx.ops.table import add


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
    dim, start = call["dim"] % len(call.out.shape), call["start"] or 0
    if call.out.shape[dim] == 1:
        hold_place(context, call, start)
    elif start:
        _remember(context, [[facet.narrow(dim, 0, start % facet.shape[dim])] for facet in _facets(call)])
    return cut(context, call)


def picked(context: Context, call: Call) -> Facets:
    """Runs the op on the ids; the one index that is taken stays, and what is counted on the way to it."""
    hold_place(context, call, call["index"])
    return cut(context, call)


def hold_place(context: Context, call: Call, index: int) -> None:
    """See that an index still names the same element: freeze the channels up to it, or down to it from the end."""
    for facet in _facets(call):
        dim = call["dim"] % facet.dim()
        along = varying(facet)
        if dim in along and len(along) > 1:
            context.collapse(call, facet, [dim])  # one of several parts alike (query, key, value): they stay in step
        elif dim in along:
            counted = (
                facet.narrow(dim, 0, index + 1) if index >= 0 else facet.narrow(dim, facet.shape[dim] + index, -index)
            )
            context.freeze(call, counted, "is counted on the way to a channel that is taken by its number")


def rolled(context: Context, call: Call) -> Facets:
    """Runs the op on the ids; channels that are rolled stay, because fewer of them would roll elsewhere."""
    rank = len(call.out.shape)
    shifts, dims = (
        list(value) if isinstance(value, (list, tuple)) else [value] for value in (call["shifts"], call["dims"])
    )
    places = list(zip(shifts, dims, strict=True)) if dims else [(1, dim) for dim in range(rank)]
    for facet in _facets(call):
        if any(dim % rank in varying(facet) and shift % call.out.shape[dim] for shift, dim in places):
            context.freeze(call, facet, "is rolled along the channels")
    return _run(call)


def shuffled(context: Context, call: Call) -> Facets:
    """Runs the op on the ids: the same position of every group goes."""
    groups = int(call["groups"])
    for facet in _facets(call):
        if 1 in varying(facet):
            first, *others = facet.split(facet.shape[1] // groups, 1)
            for other in others:
                context.match(call, first, other, "another group has no channel at this position")
    return _run(call)


def squeezed(context: Context, call: Call) -> Facets:
    """Runs the op on the ids; where no dimension is named, two channels stay, or the last would be squeezed away."""
    if "dim" not in call.arguments:
        for facet in _facets(call):
            for dim in varying(facet):
                context.freeze(call, facet.narrow(dim, 0, 2), "a single channel that is left would be squeezed away")
    return _run(call)


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
                _level(context, call, pieces, along)
        for part, piece in zip(parts, pieces, strict=True):
            piece = compress(piece)
            if not is_empty(piece):
                part.append(piece)
    _remember(context, parts)
    return parts


def _level(context: Context, call: Call, pieces: list[Tensor], dim: int) -> None:
    """See that the parts stay of equal size; a last, shorter part freezes what cannot be paired."""
    if len({piece.shape for piece in pieces}) > 1:
        for piece in pieces:
            context.freeze(call, piece, "is cut into parts of unequal size by a number")
    elif all({*varying(piece)} <= {dim} for piece in pieces):
        context.balance(call, [crop(piece, (dim,)).reshape(-1) for piece in pieces])
    else:
        for piece in pieces[1:]:
            context.match(call, pieces[0], piece, "another part has no channel at this position")


def joined(context: Context, call: Call) -> Facets:
    """Concatenates the ids."""
    shadows = [call.shadow(node) for node in call["tensors"]]
    shadows = [shadow for shadow in shadows if shadow.shape != (0,)]
    dim = (call.first("dim", "axis") or 0) % len(call.out.shape)
    shape = call.out.shape
    results = []
    for layer in _layers(shadows, dim):
        if _across(layer, dim):
            results.append(_one_line(context, call, layer, shape))
            continue
        along = {other for facet in layer if facet is not None for other in varying(facet)} - {dim}
        small = [1 if other not in along else shape[other] for other in range(len(shape))]
        if _passing_through(context, call, layer):
            continue
        pieces = []
        for shadow, facet in zip(shadows, layer, strict=True):
            size = [*small]
            size[dim] = shadow.shape[dim]
            zero = torch.zeros((), dtype=torch.int32)
            pieces.append((zero if facet is None else crop(facet, (*along, dim))).expand(size))
        results.append(compress(torch.cat(pieces, dim)).expand(shape))
    return [facet for facet in results if not is_empty(facet)]


def _passing_through(context: Context, call: Call, layer: tuple[Tensor | None, ...]) -> bool:
    """Whether a layer of facets holds created ids only and some tensors have none: those stay, and say nothing of the
    channels they would lie beside."""
    if None not in layer:
        return False
    held = [facet for facet in layer if facet is not None]
    if any(context.ids.named(flat(facet)).any() for facet in held):
        return False
    context.freeze(call, held, "is joined to a tensor of a size written in Python")
    return True


def _layers(shadows: list[Shadow], dim: int) -> Iterator[tuple[Tensor | None, ...]]:
    """One facet (or None) of each tensor at a time: those along the joined dimension together."""
    ways = {None if dim in varying(facet) else varying(facet): None for shadow in shadows for facet in shadow.facets}
    for way in ways:
        fitting = [
            [facet for facet in shadow.facets if (None if dim in varying(facet) else varying(facet)) == way]
            for shadow in shadows
        ]
        yield from itertools.zip_longest(*fitting)


def _across(layer: tuple[Tensor | None, ...], dim: int) -> bool:
    """Whether every tensor has channels here, and along other dimensions than the joined one."""
    return all(facet is not None and dim not in varying(facet) for facet in layer)


def _one_line(context: Context, call: Call, layer: tuple[Tensor | None, ...], shape: tuple[int, ...]) -> Tensor:
    """Channels across the joined dimension are cut in all tensors at once, so they go together."""
    first, *others = (crop(facet) for facet in layer if facet is not None)
    line, silent = first, first > 0
    for other in others:
        line = context.match(call, line, other, "is joined to a tensor that has no channel at this position")
        silent = silent & (other > 0)
    return torch.where(silent, line.abs(), -line.abs()).to(torch.int32).expand(shape)


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


add("view reshape _unsafe_view _reshape_alias view_as reshape_as flatten ravel", "move", reshaped)
add("view reshape _unsafe_view", "move", reshaped, sizes=view_sizes)
add("unflatten", "move", reshaped, sizes=unflatten_sizes)
add("permute transpose t numpy_T mT moveaxis movedim swapaxes swapdims flip unsqueeze adjoint", "move", rearranged)
add("roll", "move", rolled)
add("squeeze", "move", squeezed, sizes=squeeze_sizes)
add("pixel_shuffle pixel_unshuffle rot90", "move", rearranged)
add("channel_shuffle native_channel_shuffle", "move", shuffled)
add("slice", "move", sliced, sizes=slice_sizes)
add("select", "move", picked, sizes=select_sizes)
add("narrow", "move", cut, sizes=narrow_sizes)
add("diagonal unfold", "move", cut)
add(
    "split chunk tensor_split unsafe_split unsafe_chunk split_with_sizes hsplit vsplit dsplit",
    "move",
    divided,
    sizes=split_sizes,
)
add("unbind", "move", divided)
add("cat concat concatenate", "move", joined)
add("stack", "move", stacked)
add("repeat tile repeat_interleave", "move", repeated)
add("im2col", "move", unfolded)
