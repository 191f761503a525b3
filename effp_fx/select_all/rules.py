"""What each op that selects does when it selects everything: sorting keeps the order, suppression keeps every box."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from effp_fx.select_all.values import Known, Refusal, Rows, Value, take

SORTS = {"topk", "sort", "msort", "argsort"}
ENUMERATES = {"where", "nonzero", "nonzero_numpy", "argwhere"}
GATHERS = {"index", "gather", "take_along_dim", "index_select", "masked_select"}
LIKE = {
    "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty",
}  # fmt: skip


def numbers(shape: tuple[int, ...], dim: int) -> Tensor:
    """For each element its place along `dim`."""
    line = torch.arange(shape[dim]).reshape([-1 if at == dim % len(shape) else 1 for at in range(len(shape))])
    return line.expand(shape)


def sorted_values(name: str, source: Value, dim: int) -> list[Value]:
    """Every value where it stands, and its place."""
    place = Known(numbers(source.whole, dim))
    return [place] if name == "argsort" else [source, place]


def mask_of(value: Value) -> Tensor:
    """What a truth selects: all, where it depends on the input; what it says, where it does not."""
    return value.tensor if isinstance(value, Known) else torch.ones(value.whole, dtype=torch.bool)


def enumerated(name: str, mask: Value) -> list[Value] | Value:
    """The places of what a mask selects."""
    places = mask_of(mask).nonzero()
    if name in ("nonzero", "argwhere"):
        return Known(places)
    return [Known(column) for column in places.unbind(1)]


def indexed(source: Value, indices: list[Value | None]) -> tuple[Value, int]:
    """`source[indices]`, and how many of the first dimensions of the source have to be flattened into one before."""
    spread: list[Tensor | None] = []
    for value in indices:
        spread += _as_indices(value)
    if isinstance(source, Known):
        return Known(torch.ops.aten.index(source.tensor, spread)), 0
    used = [(dim, index) for dim, index in enumerate(spread) if index is not None]
    if len(used) == 1 and used[0][1].ndim == 1:
        return take(source, *used[0]), 0
    if len(used) == 2 and (rows := _batched(source.whole, used)) is not None:
        return take(source, 1, rows), 0
    if [dim for dim, _ in used] == list(range(len(used))) and all(index.ndim == 1 for _, index in used):
        return Known(_ravelled(source.whole, [index for _, index in used])), len(used)
    raise Refusal("an index of this form is not known")


def _as_indices(value: Value | None) -> list[Tensor | None]:
    if value is None:
        return [None]
    if value_dtype(value) in (torch.bool, torch.uint8):
        return list(mask_of(value).nonzero().unbind(1))
    if isinstance(value, Rows):
        raise Refusal("the index is computed from values, not by a selection")
    return [value.tensor]


def value_dtype(value: Value) -> torch.dtype:
    """The dtype of a value."""
    return value.dtype if isinstance(value, Rows) else value.tensor.dtype


def _batched(shape: tuple[int, ...], used: list[tuple[int, Tensor]]) -> Tensor | None:
    """`x[arange(batch)[:, None], index]` selects the same rows of each image; None where it does not."""
    (first, batch), (second, rows) = used
    if (first, second) != (0, 1):
        return None
    batch, rows = torch.broadcast_tensors(batch, rows)
    if batch.ndim != 2 or batch.shape[0] != shape[0] or not torch.equal(batch, numbers(tuple(batch.shape), 0)):
        return None
    return rows[0] if torch.equal(rows, rows[:1].expand_as(rows)) else None


def _ravelled(shape: tuple[int, ...], indices: list[Tensor]) -> Tensor:
    flat = torch.zeros_like(indices[0])
    for size, index in zip(shape, indices, strict=False):
        flat = flat * size + index
    return flat


def gathered(source: Value, dim: int, index: Value) -> Value:
    """`gather`, where each line along `dim` takes the same places, and takes them over the whole of the source."""
    if not isinstance(index, Known):
        raise Refusal("the index is computed from values, not by a selection")
    if isinstance(source, Known):
        return Known(source.tensor.gather(dim, index.tensor))
    places, dim = index.tensor, dim % len(source.whole)
    line = places.movedim(dim, -1).reshape(-1, places.shape[dim])
    rest = [(one, two) for at, (one, two) in enumerate(zip(source.whole, places.shape, strict=True)) if at != dim]
    if any(one != two for one, two in rest) or not torch.equal(line, line[:1].expand_as(line)):
        raise Refusal("it gathers other places on each line")
    return take(source, dim, line[0])


def tensors_alike(target: Any, args: Any, kwargs: Any, whole: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What a creation "like" a tensor of this shape gives."""
    made: Tensor = target(torch.empty(whole, dtype=dtype), *args, **kwargs)
    return made
