"""Applies a plan to the user's own module: slices its weights and rebinds the sizes that its layers hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from effp_fx.errors import CaptureError
from effp_fx.groups import Analysis, Keep, kept_flags
from effp_fx.models import registry
from effp_fx.module_copy import Memo, copied
from effp_fx.outlines import Outlines
from effp_fx.plan import ATTRIBUTE, Plan, plan_of

Shapes = Mapping[str, tuple[int, ...]]
Attributes = dict[str, dict[str, Any]]
Cut = Mapping[int, tuple[int, ...]]
"""Dimension -> the indices that are kept of it."""

_WEIGHTS = (
    "weight",
    "parametrizations.weight.original",
    "parametrizations.weight.original1",
    "weight_v",
    "weight_orig",
)
_NORMS = ("weight", "running_mean", "bias")


def new_shapes(analysis: Analysis, keep: Keep) -> dict[str, tuple[int, ...]]:
    """The shape of each weight once only these channels are kept."""
    shapes = {}
    for name, tensor in analysis.tensors.items():
        shape = list(tensor.shape)
        for dim, channels in tensor.dims.items():
            shape[dim] = int(kept_flags(channels, keep).sum())
        shapes[name] = tuple(shape)
    return shapes


def layer_attributes(model: nn.Module, shapes: Shapes) -> Attributes:
    """The sizes that layers hold by convention (`in_channels`, `num_features`, `groups`, ...), where they change."""
    found: Attributes = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        values = {**_weight_sizes(module, prefix, shapes), **_norm_sizes(module, prefix, shapes)}
        changed = {name: value for name, value in values.items() if getattr(module, name) != value}
        if changed:
            found[path] = changed
    return found


def _shape(names: tuple[str, ...], prefix: str, shapes: Shapes) -> tuple[int, ...] | None:
    return next((shapes[prefix + name] for name in names if prefix + name in shapes), None)


def _weight_sizes(module: nn.Module, prefix: str, shapes: Shapes) -> dict[str, Any]:
    """Convolutions, linear layers and embedding tables."""
    shape = _shape(_WEIGHTS, prefix, shapes)
    if shape is None or len(shape) < 2:
        return {}
    if isinstance(getattr(module, "in_channels", None), int) and isinstance(getattr(module, "groups", None), int):
        return _convolution_sizes(module, shape)
    named = {"out_features": 0, "in_features": 1, "num_embeddings": 0, "embedding_dim": 1}
    return {name: shape[dim] for name, dim in named.items() if isinstance(getattr(module, name, None), int)}


def _convolution_sizes(module: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    groups, transposed = module.groups, bool(getattr(module, "transposed", False))
    if groups > 1 and groups == module.in_channels:
        groups = shape[0] if transposed else shape[0] * groups // module.out_channels
    sizes = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
    return {"in_channels": sizes[0], "out_channels": sizes[1], "groups": groups}


def _norm_sizes(module: nn.Module, prefix: str, shapes: Shapes) -> dict[str, Any]:
    """Normalisations and per-channel activations."""
    shape = _shape(_NORMS, prefix, shapes)
    if shape is None or len(shape) != 1:
        return {}
    values: dict[str, Any] = {}
    for name in ("num_features", "num_channels", "num_parameters"):
        if isinstance(getattr(module, name, None), int):
            values[name] = shape[0]
    if "num_channels" in values and isinstance(getattr(module, "num_groups", None), int):
        before: Any = module.num_channels
        groups: Any = module.num_groups
        values["num_groups"] = groups * shape[0] // before
    return values


def apply(model: nn.Module, plan: Plan, *, inplace: bool = False) -> nn.Module:
    """The compact model: the same class, the same `state_dict` keys, smaller weights.

    Args:
        model: the model that the plan was made for, as it is now.
        plan: what to keep.
        inplace: change and return `model` itself; its parameter objects stay the same, their gradients are sliced.

    Raises:
        PlanMismatchError: the plan is for another model; nothing is changed.
        CaptureError: the model cannot be copied.
    """
    plan.check(model)
    before = plan_of(model) if hasattr(model, ATTRIBUTE) else None
    target = model if inplace else sliced_copy(model, plan)
    if inplace:
        _slice_in_place(model, plan)
    set_attributes(target, plan.attributes)
    adapter = registry.adapter_for(target)
    if adapter is not None:
        adapter.rebind(target)
    whole = plan if before is None else before.then(plan)
    setattr(target, ATTRIBUTE, whole.to_json())
    return target


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Rebind sizes: module path -> attribute -> value; a tuple stays a tuple, a list a list."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, values in attributes.items():
        for name, value in values.items():
            old = getattr(modules[path], name)
            setattr(modules[path], name, type(old)(value) if isinstance(old, (tuple, list)) else value)


class Slices:
    """The parameters of copies that are for looking at shapes: made once for as long as they are cut alike.

    Such copies share them; buffers, which a forward pass writes to, are each copy's own. With `outlines` what is cut
    has its new shape and no values.
    """

    def __init__(self, *, outlines: bool = False) -> None:
        self._outlines = Outlines() if outlines else None
        self._made: dict[str, tuple[Cut, Tensor]] = {}

    def of(self, name: str, parameter: Tensor, keep: Cut) -> Tensor:
        """The parameter cut to these indices of its dimensions."""
        known = self._made.get(name)
        if known is None or known[0] != keep:
            value = parameter.detach()
            known = keep, _like(parameter, self._cut(value, keep) if keep else value.clone())
            self._made[name] = known
        return known[1]

    def _cut(self, tensor: Tensor, keep: Cut) -> Tensor:
        if self._outlines is None:
            return _sliced(tensor, keep)
        return self._outlines.made([len(keep.get(dim, range(size))) for dim, size in enumerate(tensor.shape)], tensor)


def sliced_copy(model: nn.Module, plan: Plan, slices: Slices | None = None) -> nn.Module:
    """A deep copy in which the weights are sliced already, so that the dense ones are never held twice.

    Args:
        model: left as it is.
        plan: what to keep.
        slices: where the copy has its parameters from and leaves them for the next one; None: they are its own.
    """
    memo: Memo = {}
    for tensor, name in _weights(model):
        planned = plan.tensors.get(name)
        keep = planned.keep if planned is not None else {}
        if slices is not None and type(tensor) is nn.Parameter:
            memo[id(tensor)] = slices.of(name, tensor, keep)
        elif keep:
            memo[id(tensor)] = _like(tensor, _sliced(tensor.detach(), keep))
    try:
        return copied(model, memo)
    except Exception as error:  # deepcopy runs the user's own __deepcopy__: anything can come out
        raise CaptureError(
            f"{type(model).__name__} cannot be copied",
            seen=f"{type(error).__name__}: {error}",
            mend="prune with inplace=True",
        ) from error


def _weights(model: nn.Module) -> Iterator[tuple[Tensor, str]]:
    for name, parameter in model.named_parameters():
        yield parameter, name
    for name, buffer in model.named_buffers():
        yield buffer, name


def _like(old: Tensor, new: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        made = type(old)(new, requires_grad=old.requires_grad)
        made.__dict__.update(old.__dict__)
        return made
    return new.requires_grad_(old.requires_grad)


def _sliced(tensor: Tensor, keep: Cut) -> Tensor:
    channels_last = (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    )
    for dim, indices in keep.items():
        tensor = tensor.index_select(dim, torch.tensor(indices, device=tensor.device))
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor.contiguous()


def _slice_in_place(model: nn.Module, plan: Plan) -> None:
    for tensor, name in list(_weights(model)):
        planned = plan.tensors.get(name)
        if planned is None or not planned.keep:
            continue
        gradient = None if tensor.grad is None else _sliced(tensor.grad, planned.keep)
        tensor.grad = None
        tensor.data = _sliced(tensor.data, planned.keep)
        tensor.grad = gradient


def copy_around(model: nn.Module, network: nn.Module, small: nn.Module) -> nn.Module:
    """A copy of an object that holds the network, with the compact network in its place."""
    return copied(model, {id(network): small})
