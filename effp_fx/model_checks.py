"""Refuses what cannot be pruned at all, before anything is run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from effp_fx.errors import CaptureError

_KINDS: tuple[tuple[str, str, str], ...] = (
    ("scripted", "a scripted module", "hand over the eager module it was scripted from"),
    ("quantised", "a quantised module", "prune the float model first, quantise after that"),
    ("wrapped", "a model wrapped for several devices", "hand over model.module"),
    ("compiled", "a compiled module", "hand over the module before torch.compile (model._orig_mod)"),
)


def check_model(model: Any) -> None:
    """Raise CaptureError for a model of a kind that cannot be pruned."""
    if not isinstance(model, nn.Module):
        raise CaptureError("not a model", seen=type(model).__name__, expected="a torch.nn.Module")
    for name, module in model.named_modules():
        for kind, what, mend in _KINDS:
            if _is(kind, module):
                raise CaptureError(what, where=f"{name or 'the model'} ({type(module).__name__})", mend=mend)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _check_tensor(name, tensor)
    if not any(True for _ in model.parameters()):
        raise CaptureError(
            "the model has no parameters", seen=type(model).__name__, expected="a network with layers to prune"
        )


def _is(kind: str, module: nn.Module) -> bool:
    home = type(module).__module__
    if kind == "scripted":
        return isinstance(module, torch.jit.ScriptModule)
    if kind == "quantised":
        return ".quantized" in home or home.startswith("torch.ao.nn.quantiz")
    if kind == "wrapped":
        return isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    return isinstance(module, torch._dynamo.OptimizedModule)


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if is_lazy(tensor):
        raise CaptureError("a lazy parameter without a shape", where=name, mend="run the model once on real inputs")
    if tensor.is_meta:
        raise CaptureError(
            "a parameter on the meta device, without values", where=name, mend="model.to_empty(...) and load weights"
        )
