"""What a channel's own weights hold, channel by channel: its gammas, its filters, its products with gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effp_fx.groups import Analysis, ChannelGroup
from effp_fx.importance import Floats, Place, summed


def gammas(analysis: Analysis) -> list[Place]:
    """The norm scales of all groups."""
    return [(name, 0) for group in analysis.groups for name in group.gammas]


def scales(analysis: Analysis) -> list[Place]:
    """Gammas and betas of all groups; of a group without norms its filters and biases."""
    found: list[Place] = []
    for group in analysis.groups:
        norms = {name.rpartition(".")[0] for name in group.gammas}
        made = [part for part in group.slices if part.role in ("out", "carry")]
        own = [part for part in made if part.tensor.rpartition(".")[0] in norms]
        found += [(part.tensor, part.dim) for part in own or made if analysis.tensors[part.tensor].is_parameter]
    return found


def readers(analysis: Analysis) -> list[Place]:
    """The weights that read channels."""
    found = [(part.tensor, part.dim) for group in analysis.groups for part in group.slices if part.role == "in"]
    return [place for place in dict.fromkeys(found) if analysis.tensors[place[0]].is_parameter]


def magnitudes(analysis: Analysis, tensors: Mapping[str, Tensor]) -> Floats:
    """Mean |gamma| of each channel (K), as it is, so that layers can be compared.

    Where no norm scales a channel, the L2 norm of its filters over the mean of its group, times the mean of all gammas.
    """
    places = gammas(analysis)
    sums, counts = summed(analysis, places, {name: tensors[name].detach().abs() for name, _ in places})
    found = sums / np.maximum(counts, 1)
    usual = float(found[counts > 0].mean()) if (counts > 0).any() else 1.0
    for group in analysis.groups:
        part = slice(group.start, group.stop)
        if not counts[part].all():
            norms = np.linalg.norm(filters(analysis, tensors, group), axis=0)
            found[part] = usual * norms / max(float(norms.mean()), 1e-300)
    return found


def filters(analysis: Analysis, tensors: Mapping[str, Tensor], group: ChannelGroup) -> NDArray[np.float64]:
    """The filters of a group side by side: one column for each channel, all that its layers compute it with."""
    made = [part for part in group.slices if part.role == "out" and len(analysis.tensors[part.tensor].shape) > 1]
    columns = []
    for part in made or [part for part in group.slices if part.role in ("out", "carry")]:
        channels = analysis.tensors[part.tensor].dims[part.dim]
        rows = np.flatnonzero((channels >= group.start) & (channels < group.stop))
        order = rows[np.argsort(channels[rows], kind="stable")]
        weight = tensors[part.tensor].detach().to(torch.float64).cpu().transpose(0, part.dim)
        columns.append(weight[torch.from_numpy(order)].reshape(group.channels, -1).numpy().T)
    return np.concatenate(columns)
