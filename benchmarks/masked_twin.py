"""The masked twin of a network that another tool has cut: the dense one with what was cut set to zero.

The tool is not asked what it cut. Before it runs, every parameter gets as its gradient the position of each of its
elements in the dense tensor; a tool that slices gradients along with parameters (Torch-Pruning does) slices the
positions too, and what is left of them says exactly which elements are left.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

CONVOLUTIONS = (nn.modules.conv._ConvNd,)
EXACT = 1e-9  # relative, float64: the bound that our own networks are held to


def tag(model: nn.Module) -> None:
    """Give every parameter the flat positions of its elements as gradient: int32 seen as float32, bit for bit.

    Raises ValueError for a parameter that is not float32: its gradient could not hold the positions.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"parameter {name} is {parameter.dtype}; the positions need float32")
        positions = torch.arange(parameter.numel(), dtype=torch.int32)
        parameter.grad = positions.view(torch.float32).reshape(parameter.shape)


def kept_positions(cut: nn.Module, dense: nn.Module) -> dict[str, Tensor]:
    """Flat positions, in the dense tensors, of what the parameters that lost something still have, by name."""
    kept = {}
    for name, parameter in dense.named_parameters():
        left = _by_name(cut, name)
        if left.shape == parameter.shape:
            continue
        if left.grad is None:
            raise ValueError(f"{name}: {tuple(parameter.shape)} became {tuple(left.shape)}, its positions are lost")
        kept[name] = left.grad.contiguous().view(torch.int32).flatten().long()
    return kept


@torch.no_grad()
def masked(dense: nn.Module, kept: dict[str, Tensor], *, consumers: bool) -> nn.Module:
    """Zero, in the dense network itself, the channels that were cut; returns it.

    With consumers=False only what makes a channel is zeroed (rows, biases, scales, shifts); with True the columns
    that read it as well, which also hides a channel that is not zero when its maker is.
    """
    for name, positions in kept.items():
        parameter = dense.get_parameter(name)
        mask = torch.zeros(parameter.numel(), dtype=torch.bool)
        mask[positions] = True
        mask = mask.reshape(parameter.shape)
        if not consumers:
            mask = mask.any(dim=_consumer_dim(dense, name), keepdim=True) if _reads(dense, name) else mask
        parameter.mul_(mask)
    return dense


@dataclass(frozen=True)
class Observed:
    """What one call showed: the outputs of every convolution and linear by path, those of the model under "output"."""

    tensors: dict[str, list[Tensor]]
    flops: int  # as torch.utils.flop_counter counts them
    last: str  # the path of the layer that was called last


def observe(model: nn.Module, call: Callable[[nn.Module], Any]) -> Observed:
    """Call the model once, without gradients, and keep what its layers gave.

    Without the fused path of attention, too: what runs in it is neither heard by hooks nor counted.
    """
    seen: dict[str, list[Tensor]] = {}
    order: list[str] = []
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _listening(model, seen, order), torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = call(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    seen["output"] = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return Observed(seen, counter.get_total_flops(), order[-1] if order else "")


def relative_error(found: Observed, expected: Observed) -> tuple[float, str]:
    """Largest relative difference of two networks, and where: over the outputs and every uncut convolution or linear.

    Layers inside count because the outputs of a detector with random weights are often empty, or saturated. Each tensor
    is measured against its own largest magnitude. Infinite where the outputs differ in shape or in whole numbers, with
    one exception: where the layers agree to the last one called, and a detector only chose others among boxes of equal
    score (nothing but the number of rows, their order and whole numbers may differ then), it is the layers' error.
    """
    worst, where, compared = 0.0, "nothing", set()
    for name, tensors in expected.tensors.items():
        mine = found.tensors.get(name, [])
        if name == "output" or _changed_shapes(mine, tensors):  # a cut layer has no counterpart
            continue
        compared.add(name)
        error = _difference(mine, tensors)
        if error > worst:
            worst, where = error, name
    outputs = found.tensors["output"], expected.tensors["output"]
    changed = _changed_shapes(*outputs)
    error = math.inf if changed else _difference(*outputs)
    if error <= worst:
        return worst, where
    if worst <= EXACT and expected.last in compared and _chosen_otherwise(*outputs):
        return worst, "choice"
    return error, changed or "output"


def _chosen_otherwise(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether the outputs are rows of detections, whole numbers among them, that differ at most in which rows."""
    if len(found) != len(expected) or all(tensor.is_floating_point() for tensor in expected):
        return False
    return all(a.shape[1:] == b.shape[1:] and a.dim() == b.dim() for a, b in zip(found, expected, strict=True))


def output_difference(found: Observed, expected: Observed) -> float:
    """The relative difference of the outputs alone; infinite where a shape differs."""
    pair = found.tensors["output"], expected.tensors["output"]
    return math.inf if _changed_shapes(*pair) else _difference(*pair)


@contextlib.contextmanager
def _listening(model: nn.Module, seen: dict[str, list[Tensor]], order: list[str]) -> Iterator[None]:
    def listener(name: str) -> Callable[..., None]:
        def hear(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.setdefault(name, []).append(output.clone())  # what follows may work in place
            order.append(name)

        return hear

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    hooks = [module.register_forward_hook(listener(name)) for name, module in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _changed_shapes(found: list[Tensor], expected: list[Tensor]) -> str:
    """What is different about the shapes of two lists of tensors; "" where nothing is."""
    shapes = [tuple(tensor.shape) for tensor in found], [tuple(tensor.shape) for tensor in expected]
    if len(found) != len(expected):
        return f"{len(expected)} output tensors became {len(found)}"
    pairs = (f"output {then} became {now}" for now, then in zip(*shapes, strict=True) if now != then)
    return next(pairs, "")


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    return max((_one_difference(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def _one_difference(found: Tensor, expected: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else math.inf
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        return math.inf
    distance = (found - expected)[finite].abs()
    size = expected[finite].abs()
    return float(distance.max() / size.max().clamp_min(1e-300)) if distance.numel() else 0.0


def _by_name(model: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), last)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is no longer a tensor")
    return tensor


def _reads(model: nn.Module, name: str) -> bool:
    """Whether one dimension of this parameter reads channels that another layer makes."""
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, nn.MultiheadAttention):
        return last.endswith("weight")
    return last == "weight" and isinstance(owner, (*CONVOLUTIONS, nn.Linear))


def _consumer_dim(model: nn.Module, name: str) -> int:
    owner = model.get_submodule(name.rpartition(".")[0])
    return 0 if getattr(owner, "transposed", False) else 1
