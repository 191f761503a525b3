"""Re-estimates the statistics of batch norms on a few batches, which a network that was cut needs to be judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from effp_fx.errors import InputError
from effp_fx.inputs import Example, as_example

_MOST = 100
"""Batches read at most; EagleEye (Li et al. 2020) uses about as many."""


def recalibrate(model: nn.Module, batches: Iterable[Any], *, like: Example | None = None) -> int:
    """Set running mean and variance of every batch norm to their averages over the batches; weights stay.

    Args:
        model: run in train mode for its batch norms, in eval mode for all else; its flags are put back afterwards.
        batches: each what `model(...)` takes: a tensor, a tuple of arguments, a dict of keywords. Targets that a
            loader puts behind the inputs are left out. At most 100 batches are read.
        like: the inputs of one call, by which inputs are told from targets; None: one positional input.

    Returns:
        The number of batches read.

    Raises:
        InputError: there is no batch, or the model fails on one; the statistics are as they were.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    modes = {module: module.training for module in model.modules()}
    before = [(norm.momentum, {name: buffer.clone() for name, buffer in norm.named_buffers()}) for norm in norms]
    read = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        read = _run_through(model, batches, like or Example((torch.empty(0),)))
    finally:
        for norm, (momentum, statistics) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not read:
                for name, buffer in statistics.items():
                    norm.get_buffer(name).copy_(buffer)
        for module, training in modes.items():
            module.training = training
    return read


def take_statistics(network: nn.Module, small: nn.Module) -> None:
    """Give a network the statistics, and all other buffers, of its twin of the same sizes."""
    own = dict(network.named_buffers())
    for name, buffer in small.named_buffers():
        if not torch.equal(own[name], buffer):
            own[name].copy_(buffer)


def _run_through(model: nn.Module, batches: Iterable[Any], like: Example) -> int:
    read = 0
    with torch.no_grad():
        for batch in batches:
            example = inputs_of(batch, like)
            try:
                model(*example.args, **example.kwargs)
            except Exception as error:  # the user's forward may raise anything
                raise InputError(
                    "the model failed on a batch for its batch norms",
                    where=f"batch {read} of calibration",
                    seen=f"{type(error).__name__}: {error}",
                    expected="what model(...) takes, two samples or more, with or without targets behind it",
                ) from error
            read += 1
            if read == _MOST:
                break
    if not read:
        raise InputError("no batch to re-estimate the batch norms on", expected="a loader or a list of batches")
    return read


def inputs_of(batch: Any, like: Example) -> Example:
    """The inputs of a call in a batch, which may have targets behind them; `like` tells which are which."""
    return as_example(_inputs(batch, like))


def _inputs(batch: Any, like: Example) -> Any:
    """A batch without its targets: as many items as the call has positional inputs, or its keywords."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name in like.kwargs} if like.kwargs else batch
    if not isinstance(batch, (tuple, list)) or not like.args:
        return batch
    images = isinstance(batch, list) and all(isinstance(item, torch.Tensor) for item in batch)
    if images and isinstance(like.args[0], list):
        return (batch,)  # a list of images is one input
    return tuple(batch[: len(like.args)])
