"""What a user hands over: the module that computes, freed of its wrappings, and the inputs that it is run on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from effp_fx import binding
from effp_fx.inputs import Example, as_example, map_tensors
from effp_fx.model_checks import check_model
from effp_fx.models import adapter_for, example_for

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)


def network_of(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that computes, and its path in what the user handed over (a YOLO object holds one).

    Raises CaptureError for what cannot be pruned at all, before anything is asked of it.
    """
    check_model(model)
    adapter = adapter_for(model)
    path = adapter.network_path(model) if adapter else ""
    return (model.get_submodule(path) if path else model), path


def unwrapped(model: nn.Module) -> nn.Module:
    """The module within DataParallel, DistributedDataParallel, AveragedModel and torch.compile, however nested."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            return model


def examples_for(model: nn.Module, given: Any) -> tuple[Example, Example | None]:
    """The inputs for eval mode, the user's own if any are given, and those for train mode where the family has some."""
    adapter = adapter_for(model)
    train = adapter.train_example(model) if adapter else None
    if given is not None:  # detached: nobody copies a tensor that hangs on a graph of autograd
        return map_tensors(lambda tensor: tensor.detach(), as_example(given)), train
    return example_for(model), train


def rewrapped(model: nn.Module, path: str, small: nn.Module, inplace: bool) -> nn.Module:
    """The compact network put back into what the user handed over, or into a copy of it."""
    if inplace or not path:
        return model if inplace else small
    return binding.copy_around(model, model.get_submodule(path), small)
