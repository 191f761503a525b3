"""Copies modules as `copy.deepcopy` does, several times as fast, and where a tensor with a history makes it refuse."""

from __future__ import annotations

import copy
import copyreg
import types
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

Memo = dict[Any, Any]
"""As of `copy.deepcopy`: the id of an object -> what stands for it in the copy, and what torch notes beside that."""
_CONSTANT = {type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size}
_CONSTANT |= {types.FunctionType, types.BuiltinFunctionType, type(...)}
_GENERIC = ("__new__", "__reduce_ex__", "__reduce__")
_STATES = (object.__getstate__, nn.Module.__getstate__)
_CONTAINERS = {dict, OrderedDict, list, set}
_OWN = {name for name, value in vars(nn.Module()).items() if type(value) in _CONTAINERS}
_PICKLED = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")


def copied(model: nn.Module, memo: Memo | None = None) -> nn.Module:
    """A deep copy of a module.

    `copy.deepcopy` asks every object of a module for its pickled form. A module's own is its attributes, so those are
    copied one by one; whatever has a way of its own (`__deepcopy__`, `__reduce__`, slots) is left to `copy.deepcopy`.
    It refuses tensors that autograd computed and a module keeps as plain attributes (the weight that a hook of
    old-style `weight_norm` sets, an output put aside): here they come out as values, detached.

    Args:
        model: what to copy.
        memo: what stands for certain objects in the copy, by id: `{id(p): p for p in model.parameters()}` shares them.
    """
    twin: nn.Module = _value(model, {} if memo is None else dict(memo))
    return twin


def _value(value: Any, memo: Memo) -> Any:
    kind: Any = type(value)
    if kind in _CONSTANT or (kind is tuple and all(type(item) in _CONSTANT for item in value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _CONTAINERS and not getattr(value, "__dict__", None):
        return _container(value, memo)
    if isinstance(value, nn.Module) and _is_plain(kind):
        return _module(value, memo)
    if kind is Tensor and _is_whole(value):
        return _tensor(value, memo)
    for leaf in [value] if isinstance(value, Tensor) else pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) and not leaf.is_leaf:
            memo.setdefault(id(leaf), leaf.detach().clone())
    return copy.deepcopy(value, memo)


def _is_whole(tensor: Tensor) -> bool:
    """Whether there is no more to a tensor than its values: most buffers."""
    plain = not tensor.requires_grad and tensor.layout is torch.strided and not tensor.__dict__
    return (
        plain
        and tensor.grad is None
        and tensor.is_contiguous()
        and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
    )


def _tensor(tensor: Tensor, memo: Memo) -> Tensor:
    """A copy in memory that later views of the same memory are copied into, as `copy.deepcopy` has it."""
    storages: dict[int, Any] = memo.setdefault("torch", {})  # where torch itself looks
    storage = tensor.untyped_storage()
    if storage._cdata in storages:
        return copy.deepcopy(tensor, memo)
    twin = memo[id(tensor)] = tensor.clone()
    storages[storage._cdata] = twin.untyped_storage()
    return twin


def _module(module: nn.Module, memo: Memo) -> nn.Module:
    twin: Any = object.__new__(type(module))
    memo[id(module)] = twin
    state = {}
    for name, item in module.__getstate__().items():
        kind = type(item)
        if kind in _CONSTANT:
            state[name] = item
        elif name in _OWN and kind in _CONTAINERS and not item:  # a module's own: nothing else holds it
            state[name] = kind()
        else:
            state[name] = _value(item, memo)
    twin.__setstate__(state)
    return twin  # type: ignore[no-any-return]


def _container(value: Any, memo: Memo) -> Any:
    twin = memo[id(value)] = type(value)()
    if not value:  # most of a module's are: its hooks
        return twin
    if isinstance(value, list):
        twin.extend(_value(item, memo) for item in value)
    elif isinstance(value, set):
        twin.update(_value(item, memo) for item in value)
    else:
        twin.update((_value(key, memo), _value(item, memo)) for key, item in value.items())
    return twin


@cache
def _is_plain(kind: Any) -> bool:
    """Whether copying an object of this class comes down to copying its attributes."""
    return (
        all(getattr(kind, name) == getattr(object, name) for name in _GENERIC)
        and kind.__getstate__ in _STATES
        and not any(hasattr(kind, name) for name in _PICKLED)
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
        and kind not in copyreg.dispatch_table
    )
