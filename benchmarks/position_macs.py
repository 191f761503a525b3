"""Multiply-accumulates of a network, from its layers' sizes and the number of positions that each is applied at.

Cutting channels leaves the positions (batch, height and width, tokens, proposals) as they are, so one call of the
dense network serves every later count. Products of activations (attention scores) are not in it; the tables give
flops from torch.utils.flop_counter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

COUNTED = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)


def positions(model: nn.Module, call: Callable[[nn.Module], Any]) -> dict[str, int]:
    """How many times each layer's weight is applied in one call, by the layer's path."""
    found: dict[str, int] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, COUNTED):
            hooks.append(module.register_forward_hook(_adder(found, name)))
    try:
        with torch.no_grad():
            call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def macs(model: nn.Module, applied: dict[str, int]) -> int:
    """Multiply-accumulates of the model as it is now."""
    return sum(times * _weights(model.get_submodule(name)) for name, times in applied.items())


def _adder(found: dict[str, int], name: str) -> Callable[..., None]:
    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found[name] = found.get(name, 0) + _times(module, inputs, output)

    return add


def _times(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    if isinstance(module, nn.MultiheadAttention):
        return int(output[0].numel() // output[0].shape[-1])
    if isinstance(module, nn.Linear):
        return int(output.numel() // output.shape[-1])
    counted: Tensor = inputs[0] if getattr(module, "transposed", False) else output
    channels = module.in_channels if getattr(module, "transposed", False) else module.out_channels
    return int(counted.numel() // int(channels))  # type: ignore[arg-type]


def _weights(module: nn.Module) -> int:
    weights = (tensor for name, tensor in module.named_parameters() if name.endswith("weight"))
    return sum(tensor.numel() for tensor in weights)
