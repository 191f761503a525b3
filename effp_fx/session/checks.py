"""What a session refuses before it touches anything: wrong optimizers, sharded models, models changed under it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from effp_fx.errors import DivergenceError, SessionError
from effp_fx.groups import Analysis

_SHOWN = 4


def optimizer_of(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer itself, taken out of a wrapper that holds it as `.optimizer` (Accelerate's, for one)."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SessionError(
            "a session attaches to an optimizer", seen=type(optimizer).__name__, expected="a torch.optim.Optimizer"
        )
    return optimizer


def check_not_sharded(model: nn.Module) -> None:
    """Raise SessionError for FSDP: a rank sees parts of filters there, and can neither rank nor zero whole ones."""
    sharded = [name for name, module in model.named_modules() if "FullyShardedDataParallel" in type(module).__name__]
    sharded += [name for name, value in model.named_parameters() if type(value).__name__ == "DTensor"]
    if sharded:
        raise SessionError(
            "a sharded model (FSDP) cannot be pruned while it trains",
            where=sharded[0] or "the model",
            seen="parameters of which each rank holds a part",
            expected="whole parameters on every rank",
            mend="train with DistributedDataParallel; a detector for a board fits on one GPU",
        )


def check_optimizer(analysis: Analysis, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Raise SessionError unless the optimizer moves every trainable parameter that a mask will hold."""
    moved = {id(value) for group in optimizer.param_groups for value in group["params"]}
    wanted = [
        name
        for name, dims in analysis.tensors.items()
        if dims.is_parameter and dims.masked and parameters[name].requires_grad
    ]
    missing = [name for name in wanted if id(parameters[name]) not in moved]
    if not missing:
        return
    own = {id(value) for value in parameters.values()}
    foreign = len(moved - own)
    shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
    if len(missing) == len(wanted):
        raise SessionError(
            "the optimizer holds none of this model's parameters",
            seen=f"{foreign} parameters of other objects" if foreign else "no parameters in common",
            mend="make the optimizer from the very model that the session gets, after any copy, .to() or load",
        )
    raise SessionError(
        "the optimizer does not move all that the session prunes",
        seen=f"not in its param_groups: {shown}",
        mend="add them to the optimizer, or requires_grad_(False) them, or name their modules in ignore=",
    )


def check_alone(optimizer: torch.optim.Optimizer, kind: type) -> None:
    """Raise SessionError where another session hangs on the optimizer."""
    hooks = optimizer._optimizer_step_pre_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), kind) for hook in hooks):
        raise SessionError(
            "another session is attached to this optimizer",
            expected="one session for one optimizer",
            mend="close() the other one first",
        )


def skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler has told a fused optimizer to do nothing; the others are not called at all then."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def moved_by(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """The names of what the optimizer moves."""
    moved = {id(value) for group in optimizer.param_groups for value in group["params"]}
    return frozenset(name for name, value in tensors.items() if id(value) in moved)


def check_dense_gradients(analysis: Analysis, tensors: Mapping[str, Tensor]) -> None:
    """Raise SessionError where a gradient is sparse: it has no part for each channel."""
    for name in analysis.tensors:
        slope = tensors[name].grad
        if slope is not None and slope.layout != torch.strided:
            raise SessionError(
                "a session needs dense gradients",
                where=name,
                seen=f"a gradient of layout {slope.layout}",
                mend="make the embedding with sparse=False",
            )


def check_unchanged(
    known: Mapping[str, Tensor], moved: frozenset[str], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Raise SessionError where parameters were replaced, reshaped or taken out of the optimizer since the start.

    `moved` are the names of those that the optimizer moved then.
    """
    now = dict(model.named_parameters())
    changed = [name for name, value in known.items() if isinstance(value, nn.Parameter) and now.get(name) is not value]
    if changed:
        raise SessionError(
            "the model was changed under the session",
            where=changed[0],
            seen="another parameter object than at the start, or none",
            expected="the same parameters from the first step to the last",
            mend="make the session after all surgery, and a new one after more; load weights with load_state_dict",
        )
    lost = sorted(moved - moved_by(optimizer, known))
    if lost:
        raise SessionError(
            "the optimizer has lost parameters that the session holds",
            where=lost[0],
            mend="change param_groups before the session is made",
        )


def check_same_structure(trained: nn.Module, other: nn.Module) -> None:
    """Raise SessionError unless the two models have parameters of the same names and shapes."""
    one = {name: tuple(value.shape) for name, value in trained.named_parameters()}
    two = {name: tuple(value.shape) for name, value in other.named_parameters()}
    differing = [name for name in {**one, **two} if one.get(name) != two.get(name)]
    if differing:
        name = differing[0]
        raise SessionError(
            "this model has not the structure of the trained one",
            where=name,
            seen=str(two.get(name, "missing")),
            expected=str(one.get(name, "no such parameter")),
            mend="give a moving average of the model that the session trains",
        )


def diverged(gradients: Mapping[str, Tensor], step: int) -> DivergenceError:
    """The error for gradients that are not all finite, with the first of them."""
    worst = _first_not_finite(gradients)
    return DivergenceError(
        "training has diverged: a gradient is not finite",
        where=worst,
        seen=f"NaN or infinity before step {step + 1}; the step was not taken",
        mend="go back to the last checkpoint; lower the learning rate, clip gradients, or look at the data",
    )


def check_finite(weights: Mapping[str, Tensor], step: int) -> None:
    """Raise DivergenceError where a weight that channels are ranked by is not finite."""
    worst = _first_not_finite(weights)
    if worst is not None:
        raise DivergenceError(
            "training has diverged: a weight is not finite",
            where=worst,
            seen=f"NaN or infinity after step {step}; the mask stays as it was",
            mend="go back to the last checkpoint; lower the learning rate or clip gradients",
        )


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    return next((name for name, value in tensors.items() if not bool(value.detach().isfinite().all())), None)
