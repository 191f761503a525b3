"""Watches a model, its inputs and the random generators: whatever is called has to leave them as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


@contextmanager
def untouched(*watched: Any) -> Iterator[None]:
    """Nothing that can be told of these modules and tensors, or of the random generators, is different afterwards."""
    before = [described(item) for item in watched], _generators()
    yield
    after = [described(item) for item in watched], _generators()
    for old, new in zip(before[0], after[0], strict=True):
        different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        assert not different, f"changed: {different[:5]}"
    assert before[1] == after[1], "a random generator moved on"


def described(item: Any) -> dict[str, Any]:
    """What identifies a tensor, or a module with all its parts: objects, bytes, flags, gradients, hooks, attributes."""
    if isinstance(item, Tensor):
        return {"tensor": _tensor(item)}
    if not isinstance(item, nn.Module):
        return {"object": repr(item)}
    found: dict[str, Any] = {"keys": _keys(item)}
    for path, module in item.named_modules():
        found[f"{path}: class, mode"] = type(module), module.training
        for kind in _HOOKS:
            found[f"{path}: {kind}"] = list(getattr(module, kind).items())
        for name, value in vars(module).items():
            if not name.startswith("_"):
                found[f"{path}.{name}"] = (
                    _tensor(value) if isinstance(value, Tensor) else (id(value), repr(value)[:500])
                )
        found[f"{path}: names"] = sorted(vars(module))
    for name, tensor in (*item.named_parameters(), *item.named_buffers()):
        found[name] = _tensor(tensor)
    return found


def _keys(model: nn.Module) -> list[str]:
    try:
        return list(model.state_dict())
    except RuntimeError:  # a lazy parameter has none to give
        return []


def _tensor(tensor: Tensor) -> tuple[Any, ...]:
    identity = id(tensor), type(tensor).__name__, tensor.requires_grad, tensor.device, tensor.dtype
    if nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.is_quantized:
        return identity
    gradient = None if not tensor.is_leaf or tensor.grad is None else _tensor(tensor.grad)
    plain = tensor.detach().contiguous().reshape(-1)
    return *identity, tuple(tensor.shape), tensor.stride(), gradient, plain.view(torch.uint8).numpy().tobytes()


def _generators() -> tuple[Any, ...]:
    state: Any = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), state[1].tolist(), state[2]


class Small(nn.Module):
    """Two convolutions and a head: the model that most cases start from."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.third = nn.Conv2d(2 * width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.head(self.third(x).relu().mean((2, 3)))
