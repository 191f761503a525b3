"""Re-estimates the statistics of batch norms on a few batches, which a network that was cut needs to be judged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from effp_fx.errors import InputError
from effp_fx.inputs import as_example

_MOST = 100
"""Batches read at most; EagleEye (Li et al. 2020) uses about as many."""


def recalibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Set running mean and variance of every batch norm to their averages over the batches; weights stay.

    Args:
        model: run in train mode for its batch norms, in eval mode for all else; put back as it was afterwards.
        batches: each what `model(...)` takes: a tensor, a tuple of arguments, a dict of keywords; or a pair (input,
            target) as loaders give it, of which the input is used. At most 100 are read.

    Returns:
        The number of batches read.

    Raises:
        InputError: there is no batch.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    read = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch in batches:
                if read >= _MOST:
                    break
                example = as_example(_inputs(batch))
                model(*example.args, **example.kwargs)
                read += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
    if not read:
        raise InputError("no batch to re-estimate the batch norms on", expected="a loader or a list of batches")
    return read


def _inputs(batch: Any) -> Any:
    """The input of an (input, target) pair; anything else as it is."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and not isinstance(batch[1], (tuple,)):
        first, second = batch
        alike = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and first.dim() == second.dim()
        if not alike:
            return first if not isinstance(first, tuple) else (list(first),)
    return batch if not isinstance(batch, list) else (batch,)
