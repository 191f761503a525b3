"""The trainer that pruning methods get: our loop and recipe over one data set, each `fit` resumable by its epochs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from effp_fx import data
from effp_fx.data import set_epoch
from effp_fx.inputs import Example
from effp_fx.methods import Attach, Rider
from effp_fx.train import checkpoint
from effp_fx.train.judging import judge
from effp_fx.train.loop import Loop
from effp_fx.train.task import Course, Task

_SCORED = 256
"""Images that `score` looks at."""


@dataclass
class CourseTrainer:
    """A `methods.Trainer` over the data of a course: epoch after epoch the same batches, whichever method asks.

    Each `fit` has the recipe's warm-up and cosine over its own epochs. With a folder each keeps its state there after
    every epoch; a method that is run again in that folder goes through the `fit`s that it had finished without training
    and goes on within the one that was cut off, bit for bit.
    """

    task: Task
    course: Course
    folder: Path | None = None
    watch: Callable[[int], None] = lambda _: None
    """Told the epochs done, in all, after each."""
    epoch: int = field(default=0, init=False)
    """Epochs done."""
    seconds_before: float = field(default=0.0, init=False)
    """Of training, by processes that were cut off."""
    cpu_seconds_before: float = field(default=0.0, init=False)
    _fits: int = field(default=0, init=False)

    @property
    def example(self) -> Example | None:
        """Inputs that came with the model."""
        return self.course.example

    def fit(self, model: nn.Module, epochs: int, attach: Attach | None = None) -> Rider | None:
        """Train the model for so many epochs; returns what was attached, its hooks taken off."""
        recipe = replace(self.task.recipe, epochs=epochs)
        steps = len(self.course.batches) * epochs
        optimizer = recipe.build_optimizer(model)
        rider = attach(optimizer, steps) if attach is not None else None
        loop = Loop(model, optimizer, recipe, steps, amp=self.task.amp)
        file = None if self.folder is None else self.folder / f"fit{self._fits}.safetensors"
        begin, cpu_begin = time.perf_counter(), time.process_time()
        done, spent, cpu_spent = self._resumed(file, loop, rider)
        for epoch in range(done, epochs):
            set_epoch(self.course.batches, self.epoch + epoch)
            loop.epoch(self.course.batches)
            if file is not None:
                taken = time.perf_counter() - begin + spent, time.process_time() - cpu_begin + cpu_spent
                checkpoint.write(file, _state(epoch + 1, loop, rider, *taken))
            self.watch(self.epoch + epoch + 1)
        if rider is not None:
            rider.close()
        self.epoch += epochs
        self._fits += 1
        return rider

    def score(self, model: nn.Module) -> float:
        """mAP@[.5:.95] on the first images to train on, as they are."""
        plain = data.open_dataset(self.task.data, self.task.split, on_error=self.task.on_error)
        plain.transforms = data.as_it_is()
        some = Subset(plain, range(min(_SCORED, len(plain))))
        found = judge(model, data.loader(some, self.task.recipe.batch_size), self.course.classes).map
        return found if found == found else 0.0

    def batches(self, count: int) -> Sequence[Any]:
        """The first batches of the first epoch."""
        set_epoch(self.course.batches, 0)
        return list(itertools.islice(self.course.batches, count))

    def forget(self) -> None:
        """Remove the state of all fits: the method is through."""
        for file in [] if self.folder is None else self.folder.glob("fit*.safetensors"):
            file.unlink()

    def _resumed(self, file: Path | None, loop: Loop, rider: Rider | None) -> tuple[int, float, float]:
        """Take over a state that there is; returns the epochs and the seconds that went into it."""
        if file is None or not file.exists():
            return 0, 0.0, 0.0
        saved = checkpoint.read(file)
        loop.model.load_state_dict(saved["model"])
        loop.optimizer.load_state_dict(saved["optimizer"])
        loop.scaler.load_state_dict(saved["scaler"])
        if rider is not None:
            rider.load_state_dict(saved["rider"])
        loop.step = saved["step"]
        torch.set_rng_state(saved["random"])
        self.seconds_before += saved["seconds"]
        self.cpu_seconds_before += saved["cpu_seconds"]
        return saved["epochs"], saved["seconds"], saved["cpu_seconds"]


def _state(epochs: int, loop: Loop, rider: Rider | None, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    return {
        "epochs": epochs,
        "model": dict(loop.model.state_dict()),
        "optimizer": loop.optimizer.state_dict(),
        "scaler": loop.scaler.state_dict(),
        "rider": None if rider is None else rider.state_dict(),
        "step": loop.step,
        "random": torch.get_rng_state(),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }
