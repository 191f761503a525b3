"""A pruned model in one safetensors file (weights, plan, how it was built), and back onto a dense model; no pickle."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from effp_fx import binding, models, weights_file
from effp_fx.errors import FileFormatError, ModelNameError, PlanMismatchError
from effp_fx.plan import Plan, package_version, plan_of

# A plain string attribute, like the plan: the spec from which the dense model was built, where it is known.
BUILT_FROM = "effp_built_from"
_SHOWN = 5
# These formats are pickles: building from one would run what it holds.
_PICKLES = (".pt", ".pth", ".pkl", ".ckpt", ".bin")


def save(model: nn.Module, path: str | os.PathLike[str], *, built_from: str | None = None) -> Path:
    """Save a pruned model's state_dict and plan in one safetensors file; return its path.

    The write is atomic. Tied tensors are stored once. As with any state_dict, non-persistent buffers are not stored:
    on loading, the dense model's own are cut.

    Args:
        model: what `effp_fx.prune`, `Session.compact` or `effp_fx.load` returned, possibly trained on since.
        path: the file to write or to replace.
        built_from: the spec of the dense model, "torchvision:ssd300_vgg16", so that `load(path)` needs no model.
            None takes the one that the model carries, if any.

    Raises:
        PlanMismatchError: the model carries no plan, or has not the shapes that its plan leaves.
        FileFormatError: an entry of the state_dict is no storable tensor, or the file cannot be written.
    """
    plan = plan_of(model)
    plan.check(model, pruned=True)
    spec = built_from if built_from is not None else getattr(model, BUILT_FROM, None)
    notes = {
        "plan": plan.to_json(),
        "effp_fx": package_version(),
        "torch": str(torch.__version__),
        "class": _class_path(model),
    }
    if isinstance(spec, str):
        notes["built_from"] = spec
    return weights_file.write(path, model.state_dict(), notes)


def load(path: str | os.PathLike[str], dense_model: nn.Module | None = None, *, inplace: bool = False) -> nn.Module:
    """Return the pruned model that `save` wrote: the dense model, cut by the stored plan, with the stored weights.

    Everything is checked before anything is changed. The result has the dtypes of the file, and the device, mode
    (train or eval) and requires_grad of the dense model.

    Args:
        path: a file from `save`.
        dense_model: a model built as the one that was pruned, of any weights. None builds it from the spec in the
            file, if that names a registered family: code that only the file names is never run.
        inplace: cut `dense_model` itself rather than a copy of it.

    Raises:
        FileFormatError: the file is missing, truncated, altered, foreign or of a newer format.
        PlanMismatchError: `dense_model` is not the dense model of this file; it says what differs.
        ModelNameError: no `dense_model`, and none can be built from what the file says.
    """
    where = os.fspath(path)
    tensors, notes = weights_file.read(path)
    plan = _plan(notes, where)
    if dense_model is None:
        dense_model, inplace = _build(notes, where), True
    try:
        plan.check(dense_model)
        _check_weights(plan, dense_model, tensors)
    except PlanMismatchError as error:
        error.where, error.expected = where, _description(notes)
        raise
    small = binding.apply(dense_model, plan, inplace=inplace)
    _take_dtypes(small, tensors)
    small.load_state_dict(tensors)
    if "built_from" in notes:
        setattr(small, BUILT_FROM, notes["built_from"])
    return small


def _plan(notes: Mapping[str, str], where: str) -> Plan:
    if "plan" not in notes:
        raise FileFormatError("the file holds no plan", where=where, seen=f"the notes {sorted(notes)}")
    try:
        return Plan.from_json(notes["plan"])
    except FileFormatError as error:
        error.where = f"{where}, {error.where}" if error.where else where
        raise


def _build(notes: Mapping[str, str], where: str) -> nn.Module:
    spec = notes.get("built_from")
    mend = f"build the dense model yourself, then effp_fx.load({where!r}, dense_model)"
    if spec is None:
        raise ModelNameError(
            "the file does not say how its dense model is built",
            where=where,
            seen=f"a model of class {notes.get('class', 'unknown')}",
            mend=f"{mend}; save(..., built_from=spec) notes it",
        )
    family, _, name = spec.partition(":")
    if family not in models.names() or name.partition("?")[0].lower().endswith(_PICKLES):
        raise ModelNameError(
            "loading never runs code or opens a pickle that only the file names",
            where=where,
            seen=f"built from {spec!r}",
            expected=f"a model of a registered family: {', '.join(models.names())}",
            mend=mend,
        )
    return models.build(spec).model


def _check_weights(plan: Plan, dense_model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Check that the state_dict of the cut model will take exactly these tensors."""
    state = dense_model.state_dict()
    shapes = plan.shapes_after(dense_model)
    differences = [f"{name}: not in the file" for name in state if name not in tensors]
    differences += [f"{name}: in the file only" for name in tensors if name not in state]
    differences += [
        f"{name}: {tuple(tensor.shape)} in the file, {shapes[name]} in the pruned model"
        for name, tensor in tensors.items()
        if name in state and name in shapes and tuple(tensor.shape) != shapes[name]
    ]
    differences += _ties_that_differ(state, tensors)
    if differences:
        more = len(differences) - _SHOWN
        raise PlanMismatchError(
            f"the weights in the file are not for this {type(dense_model).__name__}",
            seen="; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else ""),
            mend="give a dense model built as the one that was pruned",
        )


def _ties_that_differ(state: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    first: dict[tuple[object, ...], str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or name not in tensors:
            continue
        other = first.setdefault(weights_file.memory_of(value), name)
        one, two = tensors[name], tensors[other]
        if one is not two and weights_file.raw_bytes(one) != weights_file.raw_bytes(two):
            yield f"{other} and {name}: one tensor in the model, two that differ in the file"


def _take_dtypes(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the dtypes of the file, so that loading rounds nothing; what is tied stays tied."""
    stored, present = _floating_dtypes(tensors), _floating_dtypes(model.state_dict())
    if len(stored) == len(present) == 1 and stored != present:
        # A model that was made half as a whole: non-persistent buffers, not in the file, have to follow.
        model.to(dtype=stored.pop())
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    converted: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        current = named.get(name)
        if current is None or current.dtype == tensor.dtype:
            continue
        if isinstance(current, nn.Parameter):
            current.data = current.data.to(tensor.dtype)
            continue
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, converted.setdefault(id(current), current.to(tensor.dtype)))


def _floating_dtypes(tensors: Mapping[str, object]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors.values() if isinstance(tensor, Tensor) and tensor.is_floating_point()}


def _class_path(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _description(notes: Mapping[str, str]) -> str:
    spec = notes.get("built_from")
    return f"the dense {notes.get('class', 'model')}" + (f", built from {spec!r}" if spec else "")
