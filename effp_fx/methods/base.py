"""What every pruning method gets and gives back: a trainer, a budget, an outcome; and the methods by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from effp_fx.errors import MethodError, NameNotFoundError, RegistrationError
from effp_fx.inputs import Example
from effp_fx.lowering import Targets


class Rider(Protocol):
    """What rides on an optimizer while a model trains, by hooks before and after its steps. A `Session` is one."""

    def state_dict(self) -> dict[str, Any]:
        """All that a rider needs to go on, beside the states of model and optimizer: tensors, numbers, strings."""

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where another rider of the same kind was."""

    def close(self) -> None:
        """Take the hooks off."""


Attach = Callable[[torch.optim.Optimizer, int], Rider]
"""`(optimizer, total_steps) -> rider`."""


class Trainer(Protocol):
    """Trains and judges on one data set by one recipe: the same batches in the same order for every method.

    Whoever implements it lets every `fit` begin with a schedule of its own and go on in the order of the data where
    the `fit` before it ended.
    """

    @property
    def example(self) -> Example | None:
        """What the model is traced on; None: its family has some."""

    def fit(self, model: nn.Module, epochs: int, attach: Attach | None = None) -> Rider | None:
        """Train the model itself for so many epochs; `attach` puts a rider on the optimizer, which is returned."""

    def score(self, model: nn.Module) -> float:
        """How good the model is, 0 to 1, on images that were trained on: what a method may choose by."""

    def batches(self, count: int) -> Sequence[Any]:
        """The first so many batches to train on, inputs first; the same whenever it is called."""


@dataclass(frozen=True)
class Budget:
    """What a method may spend, and what it has to reach."""

    epochs: int
    """Of training, in all: methods of two sessions share them out, half and half."""
    flops: float | None = 0.5
    """What is kept: up to 1 a part, above 1 a count; None: no target."""
    params: float | None = None
    round_to: int = 1
    seed: int = 0
    """Of what a method draws."""
    ignore: tuple[str, ...] = ()
    """Modules, or globs over modules, whose own channels stay."""

    @property
    def targets(self) -> Targets:
        """As the search for a plan takes them."""
        return Targets(self.flops, self.params, self.round_to)

    def halves(self) -> tuple[int, int]:
        """The epochs of the first and of the second session. Raises MethodError where there is no epoch for each."""
        if self.epochs < 2:
            raise MethodError(
                "a method of two sessions needs an epoch for each",
                seen=f"{self.epochs} epochs",
                mend="give it 2 epochs or more",
            )
        return self.epochs // 2, self.epochs - self.epochs // 2


@dataclass(frozen=True)
class Outcome:
    """A trained network that is under the targets."""

    model: nn.Module
    flops: tuple[float, float]
    """Before and after."""
    params: tuple[float, float]
    """Before and after."""
    error: float | None = None
    """Largest relative error of compact against masked network in float64, where the method cuts by a plan."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else there is to say; plain JSON values."""


Method = Callable[[nn.Module, Trainer, Budget], Outcome]
"""Trains the model that it is given and returns a network under the targets; the given one is used up by that."""

METHODS: dict[str, Method] = {}
"""By name."""


def register_method(name: str, method: Method) -> None:
    """Make a method available by name; raises RegistrationError where the name is taken."""
    if name in METHODS:
        raise RegistrationError(f"a method named {name!r} exists already", mend="choose another name")
    METHODS[name] = method


def find_method(name: str) -> Method:
    """The method of that name; raises NameNotFoundError."""
    if name not in METHODS:
        raise NameNotFoundError(f"no method is named {name!r}", expected=", ".join(METHODS))
    return METHODS[name]
