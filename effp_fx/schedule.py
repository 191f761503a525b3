"""When a session prunes, and how much it gives back: functions from a step to a ratio, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from effp_fx.errors import SessionError


def linear(progress: float) -> float:
    """1 at the beginning, 0 at the end, falling by equal amounts: how EFFP gives filters back (Ko et al. 2024)."""
    return 1.0 - progress


def fitting(total_steps: int, start: float, end: float) -> int:
    """How many updates a session has where nobody said: as many as `Schedule` has, or as there are steps for."""
    steps = int(end * total_steps) - max(int(start * total_steps), 1) + 1
    return max(1, min(Schedule.updates, steps))


@dataclass(frozen=True)
class Schedule:
    """The update steps of one session. Steps are optimizer steps that were taken, counted from 1.

    Stage 1 lasts up to the first update; at every update channels are pruned and some regrown; after the last one the
    mask is fixed. The paper states that the number regrown falls linearly with the iteration; first and last update,
    their number and the initial fraction are ours.
    """

    total_steps: int
    start: float = 0.3
    """Part of the session after which the first update comes."""
    end: float = 0.35
    """Part of the session at which the last one comes."""
    updates: int = 20
    regrow: float = 1.0
    """Part of the channels pruned that the first update gives back; 1 goes from dense to the target in even steps."""

    def __post_init__(self) -> None:
        if isinstance(self.total_steps, bool) or not isinstance(self.total_steps, int) or self.total_steps < 1:
            raise SessionError(
                "total_steps must be the number of optimizer steps of the whole training",
                seen=repr(self.total_steps),
                mend="total_steps=epochs * len(loader), over the accumulation steps where gradients are accumulated",
            )
        if not 0 <= self.start < self.end <= 1:
            raise SessionError(
                "start and end must be parts of the session, start before end",
                seen=f"start={self.start}, end={self.end}",
                expected="0 <= start < end <= 1",
            )
        if isinstance(self.updates, bool) or not isinstance(self.updates, int) or self.updates < 1:
            raise SessionError("updates must be a whole number above 0", seen=repr(self.updates))
        if not 0 <= self.regrow <= 1:
            raise SessionError("regrow must be a part between 0 and 1", seen=repr(self.regrow))
        if self._last - self._first < self.updates - 1 or self._last < 1:
            wanted = "1 update" if self.updates == 1 else f"{self.updates} updates"
            raise SessionError(
                f"total_steps is too small for {wanted} from {self.start:.0%} to {self.end:.0%} of it",
                seen=f"{self.total_steps} steps",
                expected=f"at least {self._least()}",
                mend="train longer"
                if self.updates == 1
                else "train longer, ask for fewer updates, or begin earlier (start)",
            )

    def _least(self) -> int:
        """The next larger total that holds the updates."""
        sure = math.ceil((self.updates + 1) / (self.end - self.start))
        low = max(self.total_steps, int((self.updates - 2) / (self.end - self.start)))
        return next((total for total in range(low, min(low + 10**5, sure)) if self._fits(total)), sure)

    def _fits(self, total: int) -> bool:
        return int(self.end * total) - max(int(self.start * total), 1) >= self.updates - 1

    @property
    def _first(self) -> int:
        return max(int(self.start * self.total_steps), 1)

    @property
    def _last(self) -> int:
        return int(self.end * self.total_steps)

    @cached_property
    def update_steps(self) -> tuple[int, ...]:
        """The steps after which the mask is chosen anew, evenly spread; the last fixes it. One update comes last."""
        span = self._last - self._first
        if self.updates == 1:
            return (self._last,)
        return tuple(self._first + round(index * span / (self.updates - 1)) for index in range(self.updates))

    def is_update(self, step: int) -> bool:
        """Whether the mask is chosen anew after this step."""
        return step in self.update_steps

    @property
    def freeze_step(self) -> int:
        """The step after which the mask is fixed."""
        return self.update_steps[-1]

    def regrow_share(self, step: int) -> float:
        """The part of the pruned channels that an update after this step gives back: `regrow` at first, 0 at last."""
        first, last = self.update_steps[0], self.update_steps[-1]
        if step >= last:
            return 0.0
        return self.regrow * linear((max(step, first) - first) / (last - first))
