"""The dispatch mode under which models run here: it sees every ATen op before autograd and before it is taken apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import no_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._python_dispatch import TorchDispatchMode

from effp_fx.call_site import Site

ALIASES = {"aten.lift_fresh.default", "aten.lift_fresh_copy.default", "aten.lift.default"}
"""What `torch.tensor([1, 2])` calls on the literal that Python made."""


class OpMode(SchemaCheckMode):
    """A mode at the pre-dispatch key. What it does with an op is for those who derive from it.

    Torch keeps three slots at that key and admits only its own three modes to them. We take the place of the schema
    checker, the one that nothing else uses, and none of its behaviour.
    """

    def __init__(self, site: Site) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)  # no slot of torch's own
        self.site = site

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a wrapper that costs more than most of what we do for an op; compiled models are refused


def called(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an op, without the Python dispatcher: it brings ops to the mode, and would take its time again at
    every key that lies below."""
    with no_python_dispatcher():
        return func(*args, **kwargs)


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
