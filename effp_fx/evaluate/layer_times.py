"""How long each layer of a network takes, by module path: the table that `cost.latency` is made from."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from effp_fx.inputs import Example


def layer_seconds(model: nn.Module, example: Example, *, rounds: int = 10, warmup: int = 2) -> dict[str, float]:
    """Median seconds of every module without children, of all its calls in one pass, in eval mode where the model is.

    Hooks take a microsecond or two of each. On a GPU every layer is waited for, so that times are those of its kernels.

    Args:
        model: its mode is put back.
        example: what it is run on.
        rounds: passes that count.
        warmup: passes before them that do not.
    """
    taken: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, float] = defaultdict(float)
    begun: dict[str, float] = {}
    device = next(iter(example.tensors())).device

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def before(name: str) -> Any:
        return lambda *_: begun.__setitem__(name, now())

    def after(name: str) -> Any:
        return lambda *_: spent.__setitem__(name, spent[name] + now() - begun[name])

    leaves = [(name, module) for name, module in model.named_modules() if next(module.children(), None) is None]
    hooks = [module.register_forward_pre_hook(before(name)) for name, module in leaves]
    hooks += [module.register_forward_hook(after(name)) for name, module in leaves]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for number in range(warmup + rounds):
                spent.clear()
                model(*example.args, **example.kwargs)
                for name, seconds in spent.items() if number >= warmup else ():
                    taken[name].append(seconds)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
