"""Masks channels in a copy of a model by zeroing what hands them out: filters, biases, gammas, betas, tables."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from effp_fx.groups import Analysis, Keep, TensorDims, kept_flags
from effp_fx.module_copy import copied


def masked_tensors(known: Mapping[str, TensorDims], tensors: Mapping[str, Tensor], keep: Keep) -> dict[str, Tensor]:
    """The weights that a mask changes, zeroed where their channel is off. What only reads a channel is left alone, so
    that a channel that is not silent shows."""
    result = {}
    for name, dims in known.items():
        value: Tensor | None = None
        for dim in sorted(dims.masked):
            flags = kept_flags(dims.dims[dim], keep)
            if flags.all():
                continue
            value = tensors[name].detach().clone() if value is None else value
            off = torch.from_numpy(~flags).to(value.device)
            value.index_fill_(dim, off.nonzero().flatten(), 0)
        if value is not None:
            result[name] = value
    return result


def masked_copy(model: nn.Module, analysis: Analysis, keep: Keep) -> nn.Module:
    """A copy of the dense model with the channels that `keep` drops switched off."""
    twin = copied(model)
    tensors = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    with torch.no_grad():
        for name, value in masked_tensors(analysis.tensors, tensors, keep).items():
            tensors[name].copy_(value)
    return twin
