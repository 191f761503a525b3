"""The hooks of the methods that act while a model trains, and the masks that some of them hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from effp_fx.groups import Keep
from effp_fx.methods.problem import Problem
from effp_fx.session import checks, state
from effp_fx.session.holding import Holder


class Ride(ABC):
    """Calls `before_step` and `after_step` around each step that an optimizer takes, and counts the steps.

    Args:
        problem: the model that the optimizer moves.
        optimizer: any.
        total_steps: optimizer steps of this session.
    """

    def __init__(self, problem: Problem, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self.problem, self.optimizer, self.total_steps = problem, optimizer, total_steps
        self.tensors = problem.tensors
        self.step = 0
        """Steps taken."""
        before, after = optimizer.register_step_pre_hook, optimizer.register_step_post_hook
        self._hooks = [before(self._before), after(self._after)]

    @abstractmethod
    def before_step(self) -> None:
        """Gradients are there, the step is not taken yet."""

    @abstractmethod
    def after_step(self) -> None:
        """The step was taken; `step` counts it."""

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """What there is to save beside the number of steps."""

    @abstractmethod
    def load_own_state(self, saved: dict[str, Any]) -> None:
        """Take it over."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings."""
        return {"step": self.step, **self.own_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where another rider of the same method was."""
        self.step = int(saved["step"])
        self.load_own_state(saved)

    def close(self) -> None:
        """Take the hooks off the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before(self, *_: Any) -> None:
        if not checks.skipped(self.optimizer):
            self.before_step()

    def _after(self, *_: Any) -> None:
        if not checks.skipped(self.optimizer):
            self.step += 1
            self.after_step()


class Mask:
    """Channels that are off, held at zero; they come back with the values that they had when last alive."""

    def __init__(self, problem: Problem, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.tensors = optimizer, problem.tensors
        self.holder = Holder(problem.analysis, self.tensors)

    @property
    def keep(self) -> Keep:
        """(K) True where a channel is on."""
        return ~self.holder.off

    def release(self) -> None:
        """Switch everything on, as it was when last alive."""
        self.holder.release(self._states())

    def hold(self, keep: Keep) -> None:
        """Switch off what is not kept; everything must be on."""
        self.holder.hold(~keep, self._states())

    def state_dict(self) -> dict[str, Any]:
        """What is off, and what is kept on the side."""
        return {"off": torch.from_numpy(self.holder.off.copy()), "aside": state.packed(self.holder.aside)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take it over; the parameters are zero already."""
        self.holder.restore(saved["off"].cpu().numpy().copy(), state.unpacked(saved["aside"]))

    def _states(self) -> dict[str, dict[str, Any]]:
        own = self.optimizer.state
        return {name: own[v] for name, v in self.tensors.items() if isinstance(v, nn.Parameter) and v in own}


def evenly(total: int, first: float, last: float, most: int) -> tuple[int, ...]:
    """At most so many steps of `total`, evenly from one part of it to another; at least one."""
    begin, end = max(int(first * total), 1), max(int(last * total), 1)
    if most == 1 or end <= begin:
        return (end,)
    return tuple(sorted({begin + round(index * (end - begin) / (most - 1)) for index in range(most)}))


def mean_over_time(before: float | None, now: float, memory: float = 0.9) -> float:
    """A running mean; the first value counts whole."""
    return now if before is None else memory * before + (1 - memory) * now


def add_scaled(gradients: dict[str, Tensor], slopes: dict[str, Tensor], weight: float) -> None:
    """Add `weight` times the slopes to the gradients of the same names."""
    for name, slope in slopes.items():
        if name in gradients:
            gradients[name].add_(slope.to(gradients[name]), alpha=weight)
