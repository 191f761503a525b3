"""What a value of the replay is: a tensor of the new graph, maybe with a gathering put off, or known numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from effp_fx.errors import ExportError
from effp_fx.graph import TensorInfo


@dataclass(frozen=True)
class Rows:
    """A tensor that depends on the input.

    With `index` its value is `index_select(node, dim, index)`, which is put off: a box that stands for eighty classes
    is decoded once, not eighty times.
    """

    node: fx.Node
    shape: tuple[int, ...]
    """Of `node`."""
    dtype: torch.dtype
    index: Tensor | None = None
    dim: int = 0

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of the value, the gathering included."""
        if self.index is None:
            return self.shape
        return (*self.shape[: self.dim], self.index.numel(), *self.shape[self.dim + 1 :])

    def plain(self) -> Rows:
        """The tensor without its gathering."""
        return replace(self, index=None)


@dataclass(frozen=True)
class Known:
    """A tensor that is the same for any input: an index, a label, a mask that lets all pass."""

    tensor: Tensor

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(self.tensor.shape)


Value = Rows | Known


class Refusal(Exception):
    """An op cannot be replayed for every row; the message says why."""


def take(rows: Rows, dim: int, index: Tensor) -> Rows:
    """The rows that `index` names along `dim`; raises Refusal where two dimensions would be gathered from."""
    if rows.index is not None:
        if rows.dim != dim:
            raise Refusal("it gathers along two dimensions")
        index = rows.index[index]
    size = rows.shape[dim]
    if index.numel() == size and torch.equal(index, torch.arange(size)):
        return rows.plain()
    return replace(rows, index=index, dim=dim)


def on_meta(target: Any, args: Any, kwargs: Any, shapes: dict[fx.Node, TensorInfo]) -> list[TensorInfo]:
    """Shapes and dtypes of what an op returns for inputs of these shapes. Raises Refusal where it does not run."""

    def empty(node: fx.Node) -> Tensor:
        return torch.empty(shapes[node].shape, dtype=shapes[node].dtype, device="meta")

    given, named = fx.map_arg((args, kwargs), empty)
    try:
        found = target(*given, **named)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        raise Refusal(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    parts = list(found) if isinstance(found, (tuple, list)) else [found]
    return [TensorInfo(tuple(part.shape), part.dtype) for part in parts]


def new_sizes(sizes: list[int], recorded: tuple[int, ...], now: tuple[int, ...]) -> list[int]:
    """The sizes of a reshape that was recorded on a tensor of one shape, for a tensor that has grown to another.

    Raises Refusal where it cannot be told which of the sizes grew.
    """
    if recorded == now:
        return sizes
    same = [
        now[at] if at < len(recorded) and size == recorded[at] and size != -1 else size for at, size in enumerate(sizes)
    ]
    if -1 in same or _count(same) == _count(now):
        return same
    grown = [at for at, size in enumerate(sizes) if size not in recorded or same[at] == size]
    for at in grown:
        rest = _count(same[:at] + same[at + 1 :])
        if rest and _count(now) % rest == 0 and same[at] != _count(now) // rest:
            return [*same[:at], _count(now) // rest, *same[at + 1 :]]
    raise Refusal(f"sizes {sizes} are written for {list(recorded)}, and what is reshaped is {list(now)} now")


def _count(sizes: Any) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def refusal(what: str, node_place: str, why: str) -> ExportError:
    """The error for an op that stands between every anchor and its box or score."""
    return ExportError(
        f"boxes and scores of every anchor cannot be computed: {what}",
        where=node_place,
        seen=why,
        mend='part="network" exports what comes before the post-processing',
    )
