"""One training run from its beginning, or from its last checkpoint, to its files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from effp_fx.data import set_epoch
from effp_fx.errors import DivergenceError, TrainingError
from effp_fx.evaluate.detection import DetectionScores
from effp_fx.report.run_report import EpochRow, RunReport
from effp_fx.session import Session
from effp_fx.train import checkpoint, run_log
from effp_fx.train.finish import finish
from effp_fx.train.judging import judge
from effp_fx.train.loop import Loop, moving_average
from effp_fx.train.multi_scale import scaled_batches
from effp_fx.train.ranks import Ranks, joined
from effp_fx.train.task import Course, Task, judging_batches, prepare
from effp_fx.train.watch import Silent, Status, Watch

LAST, BEST = "last.safetensors", "best.safetensors"


def train(task: Task, watch: Watch | None = None, *, resume: bool = False, overwrite: bool = False) -> RunReport | None:
    """Run a task: train, prune on the way, compact, export, measure, report.

    Under torchrun each process trains on its part, and the first one writes.

    Args:
        task: what is asked for.
        watch: told how it goes.
        resume: go on from `last.safetensors` in the folder; where there is none, begin.
        overwrite: begin anew in a folder that holds a run; its checkpoints and books are removed.

    Returns:
        What came of it; None in all processes but the first.

    Raises:
        TrainingError: the task makes no sense, or its folder holds a run already.
        DivergenceError: a loss or gradient is not finite; the last checkpoint is from before that.
        Whatever data, models, the session and the export raise.
    """
    with joined(task.device) as ranks:
        watch = watch if watch is not None and ranks.leads else Silent()
        last = task.out / LAST
        if last.exists() and not (resume or overwrite):
            raise TrainingError(
                "the folder holds a run already", where=str(last), mend="--resume to go on, --overwrite to begin anew"
            )
        try:
            task.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError("the folder cannot be made", where=str(task.out), seen=error.strerror) from error
        run = Run(task, prepare(task, ranks), ranks, watch)
        if overwrite and ranks.leads:
            for name in (LAST, BEST, *run_log.FILES.values()):
                (task.out / name).unlink(missing_ok=True)
        if resume and not overwrite and last.exists():
            run.load_state_dict(checkpoint.read(last), str(last))
            watch.note(f"go on after step {run.loop.step} of {run.total_steps}")
        try:
            run.train()
        except DivergenceError as error:
            kept = f"; the last good checkpoint is {last}" if last.exists() else ""
            error.mend = f"{error.mend}{kept}"
            raise
        return run.finished() if ranks.leads else None


class Run:
    """A model with its loop and its session, and the books that are kept of them.

    Args:
        task: what is asked for.
        course: what was opened for it.
        ranks: the processes.
        watch: told how it goes.
    """

    def __init__(self, task: Task, course: Course, ranks: Ranks, watch: Watch) -> None:
        self.task, self.course, self.ranks, self.watch = task, course, ranks, watch
        self.steps = len(course.batches)
        """Of an epoch."""
        self.total_steps = self.steps * task.recipe.epochs
        self.model = course.model
        optimizer = task.recipe.build_optimizer(self.model)
        watch.note(f"{len(course.trained_on)} images to train on, {len(course.judged_on)} to judge on")
        self.session = None if task.dense else self._session(optimizer)
        average = moving_average(self.model, task.recipe.ema) if task.recipe.ema else None
        wrapped = ranks.wrapped(self.model)
        self.loop = Loop(wrapped, optimizer, task.recipe, self.total_steps, average=average, amp=task.amp)
        self.rows: list[EpochRow] = []
        self.best = float("-inf")
        self._sums: dict[str, float] = {}
        self._seconds, self._since = 0.0, time.perf_counter()

    def _session(self, optimizer: torch.optim.Optimizer) -> Session:
        task = self.task
        return Session(
            self.model,
            optimizer,
            self.total_steps,
            target_flops=task.target_flops,
            target_params=task.target_params,
            example_inputs=self.course.example,
            progress=self.watch.note,
            **task.session,
        )

    def train(self) -> None:
        """Train what is left of the run."""
        first, skip = divmod(self.loop.step, self.steps)
        self._since = time.perf_counter()
        for epoch in range(first, self.task.recipe.epochs):
            set_epoch(self.course.batches, epoch, skip)
            skip = 0
            batches = scaled_batches(self.course.batches, self.model, self.task.multi_scale, self.task.seed + epoch)
            self.loop.epoch(batches, self._after_step)
            self._end_epoch(epoch)

    def deployed(self) -> nn.Module:
        """The model that is judged: the trained one, or its moving average with the same channels off."""
        if self.loop.average is None:
            return self.model
        average: nn.Module = self.loop.average.module
        return average if self.session is None else self.session.masked(average)

    def finished(self) -> RunReport:
        """Compact, export, measure; write the report and every file that is left to write."""
        return finish(
            self.task,
            self.course,
            self.session,
            self.loop.average.module if self.loop.average is not None else None,
            self.rows,
            self._files(),
            self.watch,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the run needs to go on as if it had not been cut off."""
        cuda = self.ranks.device.type == "cuda"
        return {
            "task": self.task.decides(),
            "classes": list(self.course.classes),
            "images": len(self.course.trained_on),
            "step": self.loop.step,
            "model": dict(self.model.state_dict()),
            "optimizer": self.loop.optimizer.state_dict(),
            "scaler": self.loop.scaler.state_dict(),
            "session": self.session.state_dict() if self.session is not None else None,
            "average": dict(self.loop.average.state_dict()) if self.loop.average is not None else None,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.ranks.device) if cuda else None,
            "rows": [asdict(row) for row in self.rows],
            "sums": self._sums,
            "seconds": self._spent(),
            "best": self.best,
        }

    def load_state_dict(self, saved: Mapping[str, Any], where: str) -> None:
        """Go on where another run of the same task was. Raises TrainingError where it was of another task."""
        self._check_same(saved, where)
        self.model.load_state_dict(saved["model"])
        self.loop.optimizer.load_state_dict(saved["optimizer"])
        self.loop.scaler.load_state_dict(saved["scaler"])
        if self.session is not None:
            self.session.load_state_dict(saved["session"])
        if self.loop.average is not None:
            self.loop.average.load_state_dict(saved["average"])
        self.loop.step = saved["step"]
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"] is not None and self.ranks.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random_cuda"], self.ranks.device)
        self.rows = [EpochRow(**row) for row in saved["rows"]]
        self._sums, self._seconds, self.best = dict(saved["sums"]), saved["seconds"], saved["best"]

    def _check_same(self, saved: Mapping[str, Any], where: str) -> None:
        own = {"classes": list(self.course.classes), "images": len(self.course.trained_on), **self.task.decides()}
        then = {"classes": saved["classes"], "images": saved["images"], **saved["task"]}
        own["recipe"], then["recipe"] = str(own["recipe"]), str(then["recipe"])
        differing = [name for name, value in own.items() if then.get(name) != value]
        if differing:
            name = differing[0]
            raise TrainingError(
                f"the checkpoint is of a run with another {' and '.join(differing)}",
                where=where,
                seen=str(then.get(name)),
                expected=str(own[name]),
                mend="resume with the options that the run was begun with, or begin anew in another folder",
            )

    def _after_step(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self.watch.step(self._status(sum(losses.values())))
        every = self.task.save_every
        # After the last step of an epoch its own checkpoint follows, with the row of the epoch in it.
        if every and self.loop.step % every == 0 and self.loop.step % self.steps:
            self._save(LAST)

    def _status(self, loss: float) -> Status:
        session = self.session
        scores = [row.map for row in self.rows if row.map is not None]
        return Status(
            step=self.loop.step,
            total=self.total_steps,
            epoch=(self.loop.step - 1) // self.steps + 1,
            epochs=self.task.recipe.epochs,
            loss=loss,
            flops=session.flops if session is not None else 1.0,
            params=session.params if session is not None else 1.0,
            map=scores[-1] if scores else None,
        )

    def _end_epoch(self, epoch: int) -> None:
        for network in (self.model, self.loop.average):
            if network is not None:
                self.ranks.share_buffers(network)
        due = (epoch + 1) % self.task.judge_every == 0 or epoch + 1 == self.task.recipe.epochs
        scores = self._judged() if due else None
        session = self.session
        row = EpochRow(
            epoch=epoch + 1,
            step=self.loop.step,
            seconds=self._spent(),
            rate=self.loop.optimizer.param_groups[0]["lr"],
            losses={name: value / self.steps for name, value in self._sums.items()},
            flops=session.flops if session is not None else 1.0,
            params=session.params if session is not None else 1.0,
            final=session is None or session.frozen,
            map=scores.map if scores is not None else None,
            map50=scores.map50 if scores is not None else None,
        )
        self.rows.append(row)
        self._sums = {}
        best = row.final and row.map is not None and row.map > self.best
        self.best = row.map if best and row.map is not None else self.best
        self._save(LAST)
        if best:
            self._save(BEST)
        if self.ranks.leads:
            run_log.write(self.task.out, self.rows, self.session.history if self.session is not None else [])
        self.watch.epoch(row)

    def _judged(self) -> DetectionScores:
        batches = judging_batches(self.task, self.course.judged_on, self.ranks)
        return judge(self.deployed(), batches, self.course.classes, ranks=self.ranks)

    def _save(self, name: str) -> None:
        if self.ranks.leads:
            checkpoint.write(self.task.out / name, self.state_dict())

    def _spent(self) -> float:
        return self._seconds + time.perf_counter() - self._since

    def _files(self) -> dict[str, Path]:
        named = {"last checkpoint": LAST, "best checkpoint": BEST, **run_log.FILES}
        return {what: self.task.out / name for what, name in named.items() if (self.task.out / name).exists()}
