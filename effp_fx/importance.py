"""How much each channel matters, from the parameters alone: norm scales, filter norms, or any torch_pruning Importance.

An importance is a function (analysis, tensors) -> scores: `tensors` has every parameter and buffer by name, the
scores are a float array with one number per channel (K), higher for what matters more. What a channel costs is not in
them; the search for a plan divides by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from effp_fx.errors import EffpError, NameNotFoundError, RegistrationError
from effp_fx.groups import Analysis, ChannelGroup

Floats = NDArray[np.float64]
Importance = Callable[[Analysis, Mapping[str, Tensor]], Floats]
Place = tuple[str, int]
"""A tensor and one of its dimensions."""


def gamma(analysis: Analysis, tensors: Mapping[str, Tensor]) -> Floats:
    """|gamma| of the norms that scale a channel, their root mean square where several do, as on a residual sum.

    Where no norm does, the L2 norm of the filters that make the channel stands in for it. Network slimming (Liu et
    al. 2017) and the EFFP paper rank by one batch norm's |gamma|; combining coupled norms, and the stand-in, are
    ours. Divided by the group's mean.
    """
    names = [(name, 0) for group in analysis.groups for name in group.gammas]
    squares, entries = _collect(analysis, tensors, names, 2)
    scaled = np.sqrt(squares / np.maximum(entries, 1))
    bare = [group for group in analysis.groups if not (entries[group.start : group.stop] > 0).all()]
    if bare:
        filters, _ = _collect(analysis, tensors, _makers(analysis, bare), 2)
        scaled = np.where(entries > 0, scaled, over_group_mean(analysis, np.sqrt(filters)))
    return over_group_mean(analysis, scaled)


def l1(analysis: Analysis, tensors: Mapping[str, Tensor]) -> Floats:
    """Sum of |w| over the filters that make a channel (Li et al. 2017), divided by the group's mean."""
    sums, _ = _collect(analysis, tensors, _makers(analysis, analysis.groups), 1)
    return over_group_mean(analysis, sums)


def l2(analysis: Analysis, tensors: Mapping[str, Tensor]) -> Floats:
    """L2 norm of the filters that make a channel, all of them together, divided by the group's mean."""
    squares, _ = _collect(analysis, tensors, _makers(analysis, analysis.groups), 2)
    return over_group_mean(analysis, np.sqrt(squares))


def random(analysis: Analysis, tensors: Mapping[str, Tensor]) -> Floats:
    """Uniform in [0.5, 1.5), the same numbers each time, from a generator of its own: the baseline to beat."""
    return np.random.default_rng(0).uniform(0.5, 1.5, analysis.channels)


IMPORTANCES: dict[str, Importance] = {"gamma": gamma, "l1": l1, "l2": l2, "random": random}


def register_importance(name: str, importance: Importance) -> None:
    """Make an importance available by name; raises RegistrationError where the name is taken."""
    if name in IMPORTANCES:
        raise RegistrationError(f"an importance named {name!r} exists already", mend="choose another name")
    IMPORTANCES[name] = importance


def score(analysis: Analysis, model: nn.Module, importance: str | Importance | Any) -> Floats:
    """Scores (K) of a model's channels by an importance: its name, a function, or a torch_pruning Importance object.

    Raises NameNotFoundError for an unknown name, EffpError where the scores are not one finite number per channel.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    function = _resolve(importance, model)
    scores = np.asarray(function(analysis, tensors), dtype=np.float64)
    if scores.shape != (analysis.channels,):
        raise EffpError(
            "an importance must give one score per channel",
            seen=f"shape {scores.shape}",
            expected=f"shape ({analysis.channels},)",
        )
    if not np.isfinite(scores).all():
        first = next(group for group in analysis.groups if not np.isfinite(scores[group.start : group.stop]).all())
        raise EffpError(
            "an importance gave scores that are not finite",
            where=f"group {first.name}",
            seen="NaN or infinity, in the scores or already in the weights",
            mend="look for NaN in the model's parameters",
        )
    return scores


def _resolve(importance: Any, model: nn.Module) -> Importance:
    if isinstance(importance, str):
        if importance not in IMPORTANCES:
            raise NameNotFoundError(f"no importance is named {importance!r}", expected=", ".join(sorted(IMPORTANCES)))
        return IMPORTANCES[importance]
    if _is_torch_pruning(importance):
        return torch_pruning_importance(importance, model)
    if callable(importance):
        function: Importance = importance
        return function
    raise EffpError(
        "importance must be a name, a function of (analysis, tensors), or a torch_pruning Importance",
        seen=repr(importance),
    )


def _makers(analysis: Analysis, groups: Iterable[ChannelGroup]) -> list[tuple[str, int]]:
    """For each group the weights (of two dimensions or more) that make its channels; failing those, all it has."""
    found: list[tuple[str, int]] = []
    for group in groups:
        made = [part for part in group.slices if part.role == "out"]
        filters = [part for part in made if len(analysis.tensors[part.tensor].shape) > 1]
        found += [(part.tensor, part.dim) for part in filters or made or group.slices if part.role != "stat"]
    return found


def _collect(
    analysis: Analysis,
    tensors: Mapping[str, Tensor],
    parts: Iterable[Place],
    power: int,
) -> tuple[Floats, Floats]:
    """For each channel the sum of |w|^`power` over its slices of these (tensor, dim), and how many slices that are."""

    def over(name: str, others: list[int]) -> Tensor:
        found = tensors[name].detach()
        # Sums in double precision without a copy in double precision.
        norms = torch.linalg.vector_norm(found, power, others, dtype=torch.float64) if others else found.double()
        return norms.abs() ** power

    return _summed(analysis, parts, over)


def summed(analysis: Analysis, places: Iterable[Place], values: Mapping[str, Tensor]) -> tuple[Floats, Floats]:
    """For each channel (K) the sum of `values` over its slices at these places, and how many slices these are."""

    def over(name: str, others: list[int]) -> Tensor:
        taken = values[name].detach().to(torch.float64)
        return taken.sum(dim=others) if others else taken

    return _summed(analysis, [place for place in places if place[0] in values], over)


def _summed(
    analysis: Analysis, places: Iterable[Place], over: Callable[[str, list[int]], Tensor]
) -> tuple[Floats, Floats]:
    """`over(name, dims)` gives one number for each index of the dimension that is left."""
    sums, counts = np.zeros(analysis.channels), np.zeros(analysis.channels)
    for name, dim in dict.fromkeys(places):
        tensor = analysis.tensors[name]
        channels = tensor.dims.get(dim)
        if channels is None:
            continue
        row = over(name, [other for other in range(len(tensor.shape)) if other != dim]).cpu().numpy()
        known = channels >= 0
        np.add.at(sums, channels[known], row[known])
        np.add.at(counts, channels[known], 1.0)
    return sums, counts


def over_group_mean(analysis: Analysis, scores: Floats) -> Floats:
    """Scores divided by the mean of their group; a group of zeros gets ones, for nothing tells its channels apart."""
    scaled = np.ones(analysis.channels)
    for group in analysis.groups:
        mean = scores[group.start : group.stop].mean()
        if mean != 0:
            scaled[group.start : group.stop] = scores[group.start : group.stop] / mean
    return scaled


def _is_torch_pruning(importance: Any) -> bool:
    """Is this an object of one of torch_pruning's Importance classes, or of one derived from them?"""
    if not any(base.__module__.startswith("torch_pruning.") for base in type(importance).__mro__):
        return False
    from torch_pruning.pruner import importance as theirs

    return isinstance(importance, theirs.Importance)


def torch_pruning_importance(importance: Any, model: nn.Module) -> Importance:
    """A torch_pruning Importance object as an importance of ours.

    Its classes walk a `torch_pruning` Group: dependencies, each naming a module and how it would be pruned, with the
    indices of the channels and their places in the group. All of that follows from our slices and the modules that
    own the tensors, so no torch_pruning graph is needed, and models that it cannot trace are scored as well. Groups
    about which the importance says nothing have their `l2` scores.

    `model` must be the very object whose gradients or statistics the importance has gathered. Raises EffpError where it
    fails on a group.
    """

    def scores(analysis: Analysis, tensors: Mapping[str, Tensor]) -> Floats:
        result = l2(analysis, tensors)
        for group in analysis.groups:
            found = _asked(importance, _described(group, analysis, model), group.name)
            # None: it looks only at kinds of layers that are not in this group.
            if found is not None and len(found):
                result[group.start : group.stop] = _per_channel(found, group.channels)
        return result

    return scores


def _asked(importance: Any, described: Any, name: str) -> Tensor | None:
    if not len(described):
        return None
    try:
        found: Tensor | None = importance(described)
    except Exception as error:
        raise EffpError(
            f"{type(importance).__name__} could not score a group",
            where=f"group {name}",
            seen=f"{type(error).__name__}: {error}",
            mend="Taylor and Hessian need gradients in the model that is pruned: call backward() first",
        ) from error
    return found


def _described(group: ChannelGroup, analysis: Analysis, model: nn.Module) -> Any:
    """A `torch_pruning` Group with one item per weight that the group runs through; indices rise within each.

    Weights with one row per channel come first: what the classes return is as long as the first item.
    """
    from torch_pruning import ops
    from torch_pruning._helpers import GroupItem
    from torch_pruning.dependency import Dependency, Group, Node
    from torch_pruning.pruner.function import PrunerBox

    made = Group()
    for part in sorted(group.slices, key=lambda part: (part.per_channel, part.role != "out")):
        owner, _, leaf = part.tensor.rpartition(".")
        module = _module(model, owner)
        pruner = PrunerBox.get(ops.module2type(module)) if module is not None else None
        numbers = analysis.tensors[part.tensor].dims.get(part.dim)
        if leaf != "weight" or pruner is None or numbers is None:
            continue
        indices = np.flatnonzero((numbers >= group.start) & (numbers < group.stop))
        node = Node(module, None, owner)
        how = pruner.prune_in_channels if part.role == "in" else pruner.prune_out_channels
        item = GroupItem(dep=Dependency(how, how, node, node), idxs=indices.tolist())
        item.root_idxs = (numbers[indices] - group.start).tolist()
        made.items.append(item)
    return made


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _per_channel(found: Tensor, channels: int) -> Floats:
    """One number per channel from what an importance returned: the mean over several layers, padding dropped."""
    values = found.detach().to(torch.float64).cpu().numpy()
    flat: Floats = (values.mean(axis=0) if values.ndim > 1 else values)[:channels]
    return flat
