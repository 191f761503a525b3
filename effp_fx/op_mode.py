"""The dispatch mode under which models run here: it sees every ATen op before autograd and before it is taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from effp_fx.call_site import Site

ALIASES = {"aten.lift_fresh.default", "aten.lift_fresh_copy.default", "aten.lift.default"}
"""What `torch.tensor([1, 2])` calls on the literal that Python made."""


class OpMode(TorchDispatchMode):
    """A mode that sees ops as the model calls them. What it does with an op is for those who derive from it.

    Composite ops (`conv2d`, `linear`) are taken apart at autograd's keys, above a dispatch mode. Below those keys, as
    `below_autograd` runs a model, they come here whole: the level of torch's pre-dispatch key, at a quarter of what
    the machinery of that key takes for an op.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the constructor of torch has no annotations
        self.site = site

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a wrapper that costs more than most of what we do for an op; compiled models are refused


@contextmanager
def below_autograd() -> Iterator[None]:
    """Run ops without autograd, which would take composite ones apart before a mode sees them."""
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
        yield


@cache
def op_text(func: Any) -> str:
    """`aten.conv2d.default`."""
    return str(func)


def mapped(tree: Any, fn: Callable[[Tensor], Any]) -> Any:
    """The arguments of an op with `fn` applied to each tensor. An op takes tensors, and lists of them; pytree, which
    knows every container there is, takes several times as long."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, list):
        return [mapped(item, fn) for item in tree]
    if isinstance(tree, tuple):
        return tuple([mapped(item, fn) for item in tree])
    if isinstance(tree, dict):
        return {key: mapped(item, fn) for key, item in tree.items()}
    return tree


def op_tensors(tree: Any) -> list[Tensor]:
    """The tensors among the arguments or the results of an op, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Tensor] = []
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ():
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple, dict)):
            found += op_tensors(item)
    return found
