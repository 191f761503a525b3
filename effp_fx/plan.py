"""The plan: which indices of which parameter and buffer a model keeps; checked, serialised, composed; no values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from effp_fx import cost, plan_parts, plan_text
from effp_fx.errors import PlanMismatchError, TargetError
from effp_fx.plan_parts import GroupPlan, TensorPlan
from effp_fx.plan_text import Indices, Shape, Size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from effp_fx.groups import Analysis

__all__ = ["ATTRIBUTE", "GroupPlan", "Plan", "TensorPlan", "from_keep", "package_version", "plan_of"]

# A plain string attribute: deepcopy and pickle carry it, and unpickling needs no effp_fx.
ATTRIBUTE = "effp_plan"
_SHOWN = 5
Summary = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Plan:
    """What a pruned model keeps of its dense one.

    Attributes:
        tensors: every parameter, and every buffer that loses something, by its qualified name.
        attributes: module path ("" is the model itself) -> attribute -> the value it gets, such as out_channels.
        groups: the channel groups by name, for reports; binding needs `tensors` and `attributes` only.
        summary: flops_before, flops_after, params_before, params_after, effp_fx (2 FLOPs a multiply-accumulate).
    """

    tensors: dict[str, TensorPlan]
    attributes: Mapping[str, Mapping[str, Size]] = field(default_factory=dict)
    groups: dict[str, GroupPlan] = field(default_factory=dict)
    summary: Summary = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the plan as one line of JSON; equal plans give equal text."""
        attributes = {
            path: {name: plan_text.size_to_json(value) for name, value in values.items()}
            for path, values in self.attributes.items()
        }
        tensors = {name: tensor.to_json() for name, tensor in self.tensors.items()}
        groups = {name: group.to_json() for name, group in self.groups.items()}
        sections = {"tensors": tensors, "attributes": attributes, "groups": groups, "summary": dict(self.summary)}
        return plan_text.write(sections)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            FileFormatError: not JSON, an unknown version, foreign keys, or indices that are out of range, unsorted,
                repeated or none; it says where.
        """
        sections = plan_text.read(text)
        return Plan(
            {name: TensorPlan.from_json(value, f"tensors[{name!r}]") for name, value in sections["tensors"].items()},
            {
                path: plan_text.attributes(value, f"attributes[{path!r}]")
                for path, value in sections["attributes"].items()
            },
            {name: GroupPlan.from_json(value, f"groups[{name!r}]") for name, value in sections["groups"].items()},
            plan_text.summary(sections["summary"]),
        )

    def check(self, model: nn.Module, *, pruned: bool = False) -> None:
        """Check that the plan belongs to the model, by names and shapes.

        Every floating parameter must be in the plan, everything in the plan must be in the model with its dense shape,
        and the modules must have the attributes that are to be rebound. Buffers that lose nothing are free to differ:
        caches come and go.

        Args:
            model: the dense model that the plan is to be applied to; it is only looked at.
            pruned: compare with the shapes that the plan leaves instead, for a model that it was applied to.

        Raises:
            PlanMismatchError: it names the first tensors that differ.
        """
        differences = [*self._tensor_differences(model, pruned), *self._attribute_differences(model)]
        if not differences:
            return
        state = "pruned by it" if pruned else "dense"
        mend = f"give the {state} model, built as the one that was pruned"
        if not pruned and self._is_applied_to(model):
            mend = "the model has the very shapes that this plan leaves, so it is pruned already: give the dense one"
        _mismatch(f"the plan is for another model than this {type(model).__name__}", differences, mend)

    def shapes_after(self, model: nn.Module) -> dict[str, Shape]:
        """Return the shape that each parameter and buffer of the dense model gets, by every name that it has."""
        tensors = _tensors(model)
        planned = {id(tensors[name]): plan.shape_after for name, plan in self.tensors.items()}
        return {name: planned.get(id(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}

    def then(self, other: Plan) -> Plan:
        """Return this plan followed by `other`, relative to the dense model of this one.

        Where both speak, `other` has the last word: attributes, and summary but for what it calls "before". A group of
        the same name is cut further; one that `other` found anew is added, as "NAME (later)" where a group of that
        name but another size exists, and counts its channels from the start of `other`.

        Raises:
            PlanMismatchError: `other` was not made for the model that this plan leaves.
        """
        differences = plan_parts.differences(self.tensors, other.tensors)
        if differences:
            mend = "compose plans in the order in which they were applied"
            _mismatch("the second plan is not for the model that the first one leaves", differences, mend)
        tensors = plan_parts.then_tensors(self.tensors, other.tensors)
        attributes = {
            path: {**self.attributes.get(path, {}), **other.attributes.get(path, {})}
            for path in {**self.attributes, **other.attributes}
        }
        before = {name: value for name, value in self.summary.items() if name.endswith("_before")}
        summary = {**self.summary, **other.summary, **before}
        return Plan(tensors, attributes, plan_parts.then_groups(self.groups, other.groups), summary)

    def _tensor_differences(self, model: nn.Module, pruned: bool) -> list[str]:
        tensors = _tensors(model)
        differences = []
        for name, plan in self.tensors.items():
            expected = plan.shape_after if pruned else plan.shape
            seen = _shape(tensors[name]) if name in tensors else "missing"
            if seen != expected:
                differences.append(f"{name}: {seen} in the model, {expected} in the plan")
        known = {id(tensors[name]) for name in self.tensors if name in tensors}
        differences += [
            f"{name}: {_shape(parameter)} in the model, missing in the plan"
            for name, parameter in model.named_parameters()
            # Integer parameters hold no channels, and no analysis speaks of them.
            if id(parameter) not in known and parameter.dtype.is_floating_point
        ]
        return differences

    def _attribute_differences(self, model: nn.Module) -> list[str]:
        modules = dict(model.named_modules(remove_duplicate=False))
        return [
            f"{path}: no attribute {name!r} in the model" if path in modules else f"{path}: no such module in the model"
            for path, values in self.attributes.items()
            for name in values
            if not hasattr(modules.get(path), name)
        ]

    def _is_applied_to(self, model: nn.Module) -> bool:
        cut = any(tensor.keep for tensor in self.tensors.values())
        return cut and not self._tensor_differences(model, pruned=True)


def from_keep(
    analysis: Analysis,
    keep: NDArray[np.bool_],
    attributes: Mapping[str, Mapping[str, Size]],
    summary: Summary | None = None,
) -> Plan:
    """Return the plan that keeps the channels of `keep`.

    Args:
        analysis: the channel groups and tensors of the dense model.
        keep: (channels,) True where the channel stays. Indices that belong to no channel always stay.
        attributes: module path -> attribute -> new value, as binding found it.
        summary: what to note beside the plan; None counts FLOPs and parameters before and after.

    Raises:
        ValueError: `keep` is not a bool array of that shape.
        TargetError: a group would lose all its channels.
    """
    if keep.shape != (analysis.channels,) or keep.dtype != np.bool_:
        raise ValueError(f"keep is {keep.dtype} {keep.shape}, expected bool ({analysis.channels},)")
    groups = {
        group.name: GroupPlan(group.stop - group.start, _indices(keep[group.start : group.stop]))
        for group in analysis.groups
    }
    emptied = [name for name, group in groups.items() if group.channels and not group.kept]
    if emptied:
        raise TargetError(
            "a plan must leave at least one channel in every group", seen=f"none kept in {', '.join(emptied[:_SHOWN])}"
        )
    # Index -1 ("belongs to no channel") then reads the True at the end.
    kept_or_frozen = np.append(keep, True)
    tensors = {}
    for name, dims in analysis.tensors.items():
        cuts = {dim: kept_or_frozen[channels] for dim, channels in sorted(dims.dims.items())}
        plan = TensorPlan(tuple(dims.shape), {dim: _indices(cut) for dim, cut in cuts.items() if not cut.all()})
        if dims.is_parameter or plan.keep:
            tensors[name] = plan
    copied = {path: dict(values) for path, values in attributes.items()}
    return Plan(tensors, copied, groups, _summary(analysis, keep) if summary is None else dict(summary))


def plan_of(model: nn.Module) -> Plan:
    """Return the plan that a pruned model carries, relative to the dense model it came from.

    Raises:
        PlanMismatchError: the model carries none.
        FileFormatError: what it carries is damaged.
    """
    text = getattr(model, ATTRIBUTE, None)
    if not isinstance(text, str):
        raise PlanMismatchError(
            f"this {type(model).__name__} carries no plan: it was not pruned by effp_fx",
            seen=f"no attribute {ATTRIBUTE!r}",
            expected="a model that effp_fx.prune or effp_fx.load returned, unwrapped",
            mend="small = effp_fx.prune(model, target_flops=0.5)",
        )
    return Plan.from_json(text)


def package_version() -> str:
    """Return the version of the installed effp_fx, "unknown" when it runs from a bare folder."""
    try:
        return metadata.version("effp-fx")
    except metadata.PackageNotFoundError:
        return "unknown"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, a tied one under each of its names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _shape(tensor: Tensor) -> Shape | str:
    # A lazy parameter raises when it is asked for its shape.
    return "not yet initialised" if is_lazy(tensor) else tuple(tensor.shape)


def _indices(kept: NDArray[np.bool_]) -> Indices:
    return tuple(np.flatnonzero(kept).tolist())


def _summary(analysis: Analysis, keep: NDArray[np.bool_]) -> Summary:
    flops, params = cost.flops(analysis), cost.params(analysis)
    return {
        "flops_before": round(flops.dense),
        "flops_after": round(float(flops(keep))),
        "params_before": round(params.dense),
        "params_after": round(float(params(keep))),
        "effp_fx": package_version(),
    }


def _mismatch(what: str, differences: list[str], mend: str) -> NoReturn:
    more = len(differences) - _SHOWN
    seen = "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise PlanMismatchError(what, seen=seen, mend=mend)
