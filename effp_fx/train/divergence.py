"""Finds the layer at which a training run left the finite numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effp_fx.errors import DivergenceError

_MEND = "go back to the last checkpoint; lower the learning rate, clip gradients harder, or look at the data"


def check_losses(
    losses: Mapping[str, float],
    model: nn.Module,
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Any]],
    step: int,
) -> None:
    """Raise DivergenceError where a loss is NaN or infinite; the batch is run again to find the first layer that is."""
    wrong = [name for name, value in losses.items() if not math.isfinite(value)]
    if not wrong:
        return
    raise DivergenceError(
        "training has diverged: a loss is not finite",
        where=_input(images, targets) or _first_layer(model, images, targets) or wrong[0],
        seen=f"{wrong[0]} = {losses[wrong[0]]} in step {step + 1}; the step was not taken",
        mend=_MEND,
    )


def check_gradients(norm: Tensor, model: nn.Module, step: int) -> None:
    """Raise DivergenceError where the norm of all gradients is not finite, with the parameter nearest to the loss."""
    if bool(norm.isfinite()):
        return
    named = [(name, value.grad) for name, value in model.named_parameters() if value.grad is not None]
    # Gradients flow from the last layer to the first, and take what is wrong with them.
    wrong = [name for name, gradient in named if not bool(gradient.isfinite().all())]
    raise DivergenceError(
        "training has diverged: a gradient is not finite",
        where=wrong[-1] if wrong else None,
        seen=f"norm {float(norm)} in step {step + 1}, {len(wrong)} of {len(named)} gradients; the step was not taken",
        mend=_MEND,
    )


def _input(images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> str | None:
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        for name, value in (("image", image), ("boxes", target["boxes"])):
            if not bool(value.isfinite().all()):
                return f"{name} of image {target.get('image_id', index)}"
    return None


def _first_layer(model: nn.Module, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> str | None:
    found: list[str] = []
    with _watched(model, found), torch.no_grad():
        model(list(images), list(targets))
    return found[0] if found else None


@contextmanager
def _watched(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Note each layer without children whose output is not finite, in the order in which they run."""
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if next(module.children(), None) is None:
                hooks.enter_context(_hooked(module, name, found))
        yield
    for name, value in model.named_buffers():  # the second pass must not count
        value.copy_(statistics[name])


@contextmanager
def _hooked(module: nn.Module, name: str, found: list[str]) -> Iterator[None]:
    def look(_: nn.Module, __: Any, output: Any) -> None:
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not all(bool(leaf.isfinite().all()) for leaf in leaves):
            found.append(name)

    handle = module.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
