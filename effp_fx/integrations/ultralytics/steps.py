"""How often the trainer of Ultralytics steps its optimizer: its own rule for accumulation, counted ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Loop:
    """What decides how often the loop steps. It steps at batch i if i - (batch of the last step) >= accumulation."""

    batches: int
    """Of one epoch."""
    epochs: int
    accumulate: int
    """Batches of a step after the warm-up."""
    warmup: int
    """Batches over which the accumulation rises from 1 to `accumulate`, linearly, rounded; 0: none."""

    def steps(self, first_epoch: int = 0) -> int:
        """Optimizer steps from the beginning of an epoch to the end; the loop begins as if one had just been made."""
        count, last = 0, -1
        start, end = first_epoch * self.batches, self.epochs * self.batches
        for batch in range(start, min(end, self.warmup + 1) if self.warmup > 0 else start):
            if batch - last >= self._rising(batch):
                count, last = count + 1, batch
        start = max(start, self.warmup + 1 if self.warmup > 0 else start)
        following = max(start, last + self.accumulate)
        return count + len(range(following, end, self.accumulate))

    def _rising(self, batch: int) -> int:
        return max(1, int(np.interp(batch, [0, self.warmup], [1, self.accumulate]).round()))


def loop_of(trainer: Any) -> Loop:
    """The loop that a trainer is about to run; its data, its batch size and its number of epochs are settled."""
    args, batches, epochs = trainer.args, len(trainer.train_loader), int(trainer.epochs)
    accumulate = min(max(round(args.nbs / trainer.batch_size), 1), batches * epochs)
    if hasattr(trainer, "_get_warmup_iterations"):
        warmup = int(trainer._get_warmup_iterations(batches))
    else:  # before 8.4: not less than a hundred batches
        warmup = max(round(args.warmup_epochs * batches), 100) if args.warmup_epochs > 0 else 0
    return Loop(batches, epochs, accumulate, warmup)
