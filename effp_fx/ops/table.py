"""The table of ops: one row each, looked up by name; an op without a row pins the channels that reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from effp_fx import graph
from effp_fx.errors import RegistrationError
from effp_fx.ops.context import Call, Context, Result

KINDS = {
    "make": "reads the channels of its input and hands out those of its weight",
    "carry": "passes channels on, its own parameters follow",
    "pass": "passes channels on",
    "tie": "unites the channels that meet in one element",
    "move": "is run on the channel ids themselves",
    "reduce": "passes channels on unless it reduces over them",
    "pin": "keeps every channel that reaches it",
}

Rule = Callable[[Context, Call], Result]
Sizes = Callable[["Kept"], tuple[tuple[Any, ...], dict[str, Any]]]
Factors = tuple[float, tuple[tuple[fx.Node, int], ...]]
"""A product: a constant, and the dimensions (node, dim) whose kept sizes multiply it."""
Flops = Callable[[Call], list[Factors]]


@dataclass(frozen=True)
class Kept:
    """What lowering knows of one op: which indices are kept along each dimension of its arguments and results."""

    call: Call
    sizes: Callable[[fx.Node, int], tuple[int, ...]]
    """(node, output) -> the compact shape."""
    indices: Callable[[fx.Node, int, int], list[bool]]
    """(node, output, dim) -> for each dense index whether it is kept."""


@dataclass(frozen=True)
class Row:
    """What the compiler knows of one op."""

    name: str
    """`aten.conv2d`: without the overload."""
    kind: str
    rule: Rule
    flops: Flops | None = None
    sizes: Sizes | None = None
    """New arguments where sizes are written into the call; None: the arguments stay."""
    doc: str = ""
    creates: bool = False
    """Whether the op hands out channels though none reach it (a tensor of zeros, an expanded one)."""


_ROWS: dict[str, Row] = {}


def add(
    names: str | Iterable[str],
    kind: str,
    rule: Rule,
    *,
    flops: Flops | None = None,
    sizes: Sizes | None = None,
    creates: bool = False,
) -> None:
    """Enter a row for each name; `aten.` is put before names without a namespace."""
    for name in names.split() if isinstance(names, str) else names:
        full = name if "." in name else f"aten.{name}"
        text = (rule.__doc__ or "").strip().split("\n")[0]
        _ROWS[full] = Row(full, kind, rule, flops, sizes, text, creates)


def rows() -> list[Row]:
    """All rows, by name."""
    return [_ROWS[name] for name in sorted(_ROWS)]


def find(node: fx.Node) -> Row | None:
    """The row of the op that a node calls; an in-place op has the row of its functional twin."""
    name = graph.op_name(node)
    if name in _ROWS:
        return _ROWS[name]
    if name.endswith("_") and not name.endswith("__"):
        return _ROWS.get(name.rstrip("_"))
    if name.endswith("_copy"):
        return _ROWS.get(name.removesuffix("_copy"))
    return None


def register_op(
    name: str, rule: Rule | None = None, *, like: str | None = None, kind: str = "pass", flops: Flops | None = None
) -> None:
    """Teach the compiler an op of your own.

    Args:
        name: `namespace::op` or `namespace.op`, as registered with torch.library, without the overload.
        rule: `rule(context, call) -> facets`: what becomes of the channels, see docs/teach.md.
        like: instead of a rule, the name of an op that treats channels alike (`"relu"`, `"sigmoid"`, `"add"`).
        kind: one of `effp_fx.ops.table.KINDS`, for the documentation.
        flops: `flops(call) -> [(constant, ((node, dim), ...))]`: its cost as products of kept sizes.

    Raises:
        RegistrationError: neither or both of rule and like, an unknown `like` or kind, or a name that is no op.
    """
    full = name.replace("::", ".")
    if full.count(".") != 1:
        raise RegistrationError(f"{name!r} does not name an op", expected='"namespace::op", without the overload')
    if (rule is None) == (like is None):
        raise RegistrationError(
            f"give {name!r} either a rule or an op that it is like", mend=f'register_op("{name}", like="relu")'
        )
    if kind not in KINDS:
        raise RegistrationError(f"no kind {kind!r}", expected=", ".join(KINDS))
    if like is not None:
        source = _ROWS.get(like if "." in like else f"aten.{like}".replace("::", "."))
        if source is None:
            raise RegistrationError(
                f"no row for {like!r}", mend="effp_fx.ops.rows() lists the rows; docs/ops.md shows them"
            )
        _ROWS[full] = replace(source, name=full, flops=flops or source.flops)
    elif rule is not None:
        _ROWS[full] = Row(full, kind, rule, flops, None, (rule.__doc__ or "").strip().split("\n")[0])


def forget_op(name: str) -> None:
    """Take a registered row out again."""
    _ROWS.pop(name.replace("::", "."), None)
