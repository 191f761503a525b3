"""The parts of a plan, one tensor's cut and one group's, and how two cuts made one after the other become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from effp_fx import index_ranges, plan_text
from effp_fx.plan_text import Indices, Shape


@dataclass(frozen=True)
class TensorPlan:
    """One parameter or buffer: its dense shape and, for each dimension that loses something, the indices it keeps."""

    shape: Shape
    keep: dict[int, Indices] = field(default_factory=dict)

    @property
    def shape_after(self) -> Shape:
        """The shape that the plan leaves."""
        return tuple(len(self.keep[dim]) if dim in self.keep else size for dim, size in enumerate(self.shape))

    def then(self, other: TensorPlan) -> TensorPlan:
        """Return this cut followed by `other`, whose dense shape is the shape_after of this one."""
        keep = dict(self.keep)
        for dim, kept in other.keep.items():
            keep[dim] = _through(keep[dim], kept) if dim in keep else kept
        return TensorPlan(self.shape, dict(sorted(keep.items())))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: {"shape": [64, 3, 3, 3], "keep": {"0": "0-12,14"}}."""
        keep = {str(dim): index_ranges.to_text(kept) for dim, kept in self.keep.items()}
        return {"shape": list(self.shape), "keep": keep}

    @staticmethod
    def from_json(value: object, where: str) -> TensorPlan:
        """Read what `to_json` returned; FileFormatError at `where` for anything else."""
        found = plan_text.entries(value, where, ("shape", "keep"))
        shape = plan_text.shape(found["shape"], where)
        return TensorPlan(shape, plan_text.kept_by_dim(found["keep"], f"{where}.keep", shape))


@dataclass(frozen=True)
class GroupPlan:
    """One channel group: how many channels it had and which of them, counted from 0 within the group, are kept."""

    channels: int
    kept: Indices

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: {"channels": 64, "kept": "0-12,14"}."""
        return {"channels": self.channels, "kept": index_ranges.to_text(self.kept)}

    @staticmethod
    def from_json(value: object, where: str) -> GroupPlan:
        """Read what `to_json` returned; FileFormatError at `where` for anything else."""
        found = plan_text.entries(value, where, ("channels", "kept"))
        channels = plan_text.whole(found["channels"], where, least=1)
        return GroupPlan(channels, plan_text.kept(found["kept"], where, channels))


def differences(first: Mapping[str, TensorPlan], second: Mapping[str, TensorPlan]) -> list[str]:
    """Return, a line for each, the tensors for which `second` does not start from what `first` leaves."""
    found = []
    for name in {**first, **second}:
        if name in first and name in second:
            left, needed = first[name].shape_after, second[name].shape
            if left != needed:
                found.append(f"{name}: the first leaves {left}, the second needs {needed}")
        # A buffer that only one of the two cuts stands in that one alone; a parameter stands in both.
        elif not (first.get(name) or second[name]).keep:
            found.append(f"{name}: only in the {'first' if name in first else 'second'}")
    return found


def then_tensors(first: Mapping[str, TensorPlan], second: Mapping[str, TensorPlan]) -> dict[str, TensorPlan]:
    """Return each tensor's cut by `first` and then by `second`, relative to the dense tensors of `first`."""
    return {
        name: first[name].then(second[name]) if name in first and name in second else first.get(name) or second[name]
        for name in {**first, **second}
    }


def then_groups(first: Mapping[str, GroupPlan], second: Mapping[str, GroupPlan]) -> dict[str, GroupPlan]:
    """Return the groups of both, those of one name and matching size as one cut; others of one name side by side."""
    groups = dict(first)
    for name, group in second.items():
        earlier = first.get(name)
        if earlier is None:
            groups[name] = group
        elif len(earlier.kept) == group.channels:
            groups[name] = GroupPlan(earlier.channels, _through(earlier.kept, group.kept))
        else:
            groups[f"{name} (later)"] = group
    return groups


def _through(first: Indices, second: Indices) -> Indices:
    return tuple(first[index] for index in second)
