"""What a call of the post-processing reads, and whether it treats each row alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from effp_fx import graph, ops
from effp_fx.graph import TensorInfo
from effp_fx.select_all import rules
from effp_fx.select_all.values import Refusal

_MOVES = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "squeeze",
    "unsqueeze", "contiguous", "stack", "cat", "concat", "detach", "alias", "clone", "select", "slice", "narrow",
    "split", "split_with_sizes", "chunk", "unbind", "expand", "repeat",
}  # fmt: skip
REDUCES = {
    "softmax", "log_softmax", "amax", "amin", "max", "min", "sum", "mean", "prod", "argmax", "argmin",
}  # fmt: skip


def check_rows(node: fx.Node, name: str, shapes: dict[fx.Node, TensorInfo], whole: list[TensorInfo]) -> None:
    """Refuse what is not known to treat each row alike."""
    row = ops.find(node)
    if name in _MOVES:
        return
    if name in REDUCES:
        source = next(iter(shapes))
        dims = argument(node, "dim", None)
        over = dims if isinstance(dims, (list, tuple)) else [dims]
        recorded, now = graph.info(source).shape, shapes[source].shape
        last = {-1, len(now) - 1} if len(now) > 1 else set()
        # Rows never lie last in what has coordinates or classes; their number may be what it was by chance.
        if not over or any(dim not in last or recorded[dim] != now[dim] for dim in over):
            raise Refusal("it combines rows, of which a selection may have removed some")
        return
    elementwise = row is not None and row.kind in ("pass", "tie")
    if not elementwise or whole[0].shape != torch.broadcast_shapes(*(item.shape for item in shapes.values())):
        raise Refusal("it is not known to treat each row alike")


def needed(node: fx.Node) -> list[fx.Node]:
    """What the replay of an op reads: of suppression only how many boxes there are."""
    name = graph.op_name(node).rpartition(".")[2]
    if name == "nms":
        return [node.args[1]]  # type: ignore[list-item]  # the scores
    if name in rules.SORTS or (name == "index_put" and graph.info(node).dtype is torch.bool):
        return [node.args[0]]  # type: ignore[list-item]  # a tensor
    return node.all_input_nodes


def argument(node: fx.Node, name: str, default: Any) -> Any:
    """An argument by the name that it has in the op's schema."""
    for at, item in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]  # an op of torch.library
        if item.name == name:
            return node.args[at] if at < len(node.args) else node.kwargs.get(name, default)
    return default
