"""Joins in the replay: what was taken from one tensor piece by piece is that tensor again, not many copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from effp_fx import graph
from effp_fx.select_all.values import Rows, Value, take

Add = Callable[[Any, tuple[Any, ...], Rows], fx.Node]
"""Writes an op into the new graph, in place of what the rows stand for."""

_ATEN = torch.ops.aten


def joined(add: Add, node: fx.Node, values: dict[fx.Node, Value]) -> Rows | None:
    """A join of rows: the distinct tensors joined once, and which of their rows stand where. None: join them plainly.

    A detector that goes through its classes one by one joins the same boxes once for each class; here they stand once,
    with an index that repeats them.
    """
    parts: Any = node.args[0]
    rows = [values[part] for part in parts]
    dim = _argument(node) % len(rows[0].whole)
    if not all(isinstance(part, Rows) and (part.index is None or part.dim == dim) for part in rows):
        return None
    found: list[Rows] = rows  # type: ignore[assignment]  # just checked
    whole = _slice_of(add, found, dim)
    if whole is not None:
        return whole
    distinct = list({part.node: part.plain() for part in found}.values())
    if len(distinct) == len(found) and all(part.index is None for part in found):
        return None
    starts, total = {}, 0
    for part in distinct:
        starts[part.node] = total
        total += part.shape[dim]
    index = torch.cat([starts[part.node] + _index(part, dim) for part in found])
    base = distinct[0].node
    if len(distinct) > 1:
        base = add(_ATEN.cat.default, ([part.node for part in distinct], dim), distinct[0])
    return take(Rows(base, graph.info(base).shape, found[0].dtype), dim, index)


def _argument(node: fx.Node) -> int:
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(dim)


def _index(part: Rows, dim: int) -> Tensor:
    return part.index if part.index is not None else torch.arange(part.shape[dim])


def _slice_of(add: Add, parts: Sequence[Rows], dim: int) -> Rows | None:
    """Columns `first`, `first + 1`, ... of one tensor joined below each other: a slice of it, turned and flattened."""
    nodes = [part.node for part in parts]
    if len(nodes) < 2 or any(graph.op_name(node) != "aten.select" or len(node.args) != 3 for node in nodes):
        return None
    if any(part.index is not None for part in parts):
        return None
    calls: list[Any] = [node.args for node in nodes]
    source, column, first = calls[0]
    column %= len(graph.info(source).shape)
    wanted = [(source, column, first + at) for at in range(len(nodes))]
    given = [(item, at % len(graph.info(source).shape), place) for item, at, place in calls]
    if given != wanted:
        return None
    cut = add(_ATEN.slice.Tensor, (source, column, first, first + len(nodes)), parts[0])
    turned = add(_ATEN.movedim.int, (cut, column, dim), parts[0])
    flat = add(_ATEN.flatten.using_ints, (turned, dim, dim + 1), parts[0])
    return Rows(flat, graph.info(flat).shape, parts[0].dtype)
