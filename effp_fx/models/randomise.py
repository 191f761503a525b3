"""Random values for everything that a fresh model leaves at one or zero, so that no part of it is without effect."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from effp_fx.inputs import Example

_FEW = 1e-2  # a scale whose mean size is below this (layer scale starts at 1e-6) would hide its whole branch
_DEAD = 1e-6  # variance of a channel with nothing in it


def randomise(model: nn.Module, seed: int = 0, *, example: Example | None = None) -> nn.Module:
    """Change, in place, every value that initialisation leaves trivial; the same seed gives the same values.

    A new network has scales of one, biases and means of zero and variances of one: a compiler could drop them all
    and nothing would show. After this
    - norms, frozen ones included, have scales in U(0.5, 1.5), one in ten negative, biases and means in N(0, 0.1),
      variances in U(0.5, 1.5);
    - biases of all other layers are N(0, 0.05), their weights keep their initialisation unless it is all zero,
      which becomes normal with variance 1 / fan-in;
    - other parameters with one axis (layer scale, PReLU) are multiplied by U(0.5, 1.5); where they are too small to
      matter, they become U(0.5, 1.5) themselves if non-zero, N(0, 0.1) if zero. Larger tables that are zero become
      N(0, 0.02).

    Statistics that have nothing to do with the data let activations grow with depth, until boxes degenerate and
    softmaxes saturate. With an ``example`` the model runs on it once, in eval mode, and running means and variances
    become those measured there, moved by N(0, 0.1) deviations and multiplied by U(0.5, 1.5).

    Args:
        model: any module; its parameters and buffers are written under ``torch.no_grad``.
        seed: of a generator on the CPU, whose draws are all that the values depend on.
        example: eval-mode inputs of the model.

    Returns:
        The model itself.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module, name, tensor in _owned_tensors(model):
            value = _drawn(module, name, tensor, generator)
            if value is not None:
                tensor.copy_(value)
        if example is not None:
            _measure_statistics(model, example, generator)
    return model


def _owned_tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Each floating parameter and buffer once, with the first module that owns it, in registration order."""
    seen: set[int] = set()
    for module in model.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if id(tensor) not in seen and tensor.is_floating_point() and tensor.numel():
                seen.add(id(tensor))
                yield module, name, tensor


def _measure_statistics(model: nn.Module, example: Example, generator: torch.Generator) -> None:
    """Set the statistics of each norm just before it first runs, so that what follows sees its settled output."""
    done: set[int] = set()

    def settle(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(norm) in done:
            return
        done.add(id(norm))
        mean_buffer, variance_buffer = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        variance, mean = torch.var_mean(inputs[0].transpose(0, 1).flatten(1), dim=1, correction=0)
        variance = torch.where(variance > _DEAD, variance, torch.ones_like(variance))  # one pixel, or a dead channel
        shift, factor = _normal(mean_buffer, 0.1, generator), _around_one(mean_buffer, generator)
        mean_buffer.copy_(mean + shift.to(mean) * variance.sqrt())
        variance_buffer.copy_(variance * factor.to(variance))

    norms = [m for m in model.modules() if _is_norm(m) and isinstance(getattr(m, "running_var", None), Tensor)]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(*example.args, **example.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in flags:
            module.training = training


def _drawn(module: nn.Module, name: str, tensor: Tensor, generator: torch.Generator) -> Tensor | None:
    """The tensor's new value on the CPU; None where it stays."""
    if name == "running_mean":
        return _normal(tensor, 0.1, generator)
    if name == "running_var":
        return _around_one(tensor, generator)
    if _is_norm(module):
        return _norm_value(name, tensor, generator)
    if name not in module._parameters:
        return None  # anchors, tables of positions, means of images
    if name.endswith("bias") and tensor.ndim == 1:
        return _normal(tensor, 0.05, generator)
    is_layer = name.endswith("weight") and tensor.ndim > 1
    if not is_layer and max(tensor.shape, default=1) == tensor.numel():
        return _one_axis(tensor, generator)
    if not tensor.any():
        return _normal(tensor, tensor[0].numel() ** -0.5 if is_layer else 0.02, generator)
    return None


def _is_norm(module: nn.Module) -> bool:
    """A layer whose scale has one axis and whose class, or one it derives from, says norm: of torch or anybody's."""
    weight = getattr(module, "weight", None)
    kinds = " ".join(kind.__name__.lower() for kind in type(module).__mro__)
    return isinstance(weight, Tensor) and weight.ndim == 1 and "norm" in kinds


def _norm_value(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor | None:
    if name == "weight":
        flip = torch.rand(tensor.shape, generator=generator) < 0.1
        return torch.where(flip, -1.0, 1.0) * _around_one(tensor, generator)
    return _normal(tensor, 0.1, generator) if name == "bias" else None


def _one_axis(tensor: Tensor, generator: torch.Generator) -> Tensor:
    factor, mean_size = _around_one(tensor, generator), float(tensor.abs().mean())
    if mean_size == 0 or not math.isfinite(mean_size):
        return _normal(tensor, 0.1, generator)
    return factor if mean_size < _FEW else factor * tensor.cpu()


def _around_one(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(tensor.shape, generator=generator) + 0.5


def _normal(tensor: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator) * deviation
