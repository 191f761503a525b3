"""What a training run is made of beside model and data: optimizer, rate over the steps, clipping, averaging."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from effp_fx.errors import TrainingError

Build = Callable[["Recipe", list[dict[str, Any]]], torch.optim.Optimizer]


def _sgd(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _adamw(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=recipe.lr)


OPTIMIZERS: Mapping[str, Build] = {"sgd": _sgd, "adamw": _adamw}
LEARNING_RATES: Mapping[str, float] = {"sgd": 0.02, "adamw": 2e-3}
"""Where none is given: for a batch of 16 from fresh weights."""
WEIGHT_DECAYS: Mapping[str, float] = {"sgd": 5e-4, "adamw": 0.01}
_WARMUP_PART = 0.1
"""Of a run, at most."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run. Rates are those of the peak; a schedule is a function from a step to a part of it."""

    epochs: int = 30
    batch_size: int = 16
    """Images of a batch, of each process."""
    optimizer: str = "sgd"
    lr: float = LEARNING_RATES["sgd"]
    momentum: float = 0.9
    """Of SGD, in Nesterov's form."""
    weight_decay: float = WEIGHT_DECAYS["sgd"]
    """Of weights; norms and biases have none, so that gammas obey the losses alone."""
    warmup: int = 100
    """Steps over which the rate grows from 0 in equal amounts, but at most a tenth of the run."""
    last_lr: float = 0.01
    """Part of the peak at which the cosine ends (Loshchilov and Hutter 2017)."""
    clip: float = 10.0
    """Largest norm of the gradient of all parameters."""
    ema: float = 0.0
    """Weight that a moving average of the parameters keeps in each step; 0: there is none."""

    def __post_init__(self) -> None:
        rules = (
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, " or ".join(OPTIMIZERS)),
            ("lr", self.lr, self.lr > 0 and math.isfinite(self.lr), "a finite number above 0"),
            ("momentum", self.momentum, 0 <= self.momentum < 1, "0 or more, below 1"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more"),
            ("warmup", self.warmup, self.warmup >= 0, "0 or more"),
            ("last_lr", self.last_lr, 0 <= self.last_lr <= 1, "a part between 0 and 1"),
            ("clip", self.clip, self.clip > 0, "above 0"),
            ("ema", self.ema, 0 <= self.ema < 1, "0 or more, below 1"),
        )
        for name, value, holds, expected in rules:
            if not holds:
                raise TrainingError(f"there is no training with this {name}", seen=repr(value), expected=expected)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over all that the model trains; each group knows its peak rate as `initial_lr`."""
        trained = [value for value in model.parameters() if value.requires_grad]
        decayed = [value for value in trained if value.ndim > 1]
        plain = [value for value in trained if value.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": values, "weight_decay": decay, "initial_lr": self.lr}
            for values, decay in ((decayed, self.weight_decay), (plain, 0.0))
            if values
        ]
        return OPTIMIZERS[self.optimizer](self, groups)

    def rate(self, step: int, total: int) -> float:
        """The part of the peak rate at which step number `step` (from 0) of `total` is taken: warm-up, then cosine."""
        warm = min(self.warmup, int(_WARMUP_PART * total))
        if step < warm:
            return (step + 1) / (warm + 1)
        progress = (step - warm) / max(total - warm, 1)
        return self.last_lr + (1 - self.last_lr) * 0.5 * (1 + math.cos(math.pi * progress))
