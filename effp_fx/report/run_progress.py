"""A training run while it goes: bars with FLOPs, parameters and mAP on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.progress import Progress

from effp_fx.report.progress_bar import progress_bar
from effp_fx.report.run_report import EpochRow, Status
from effp_fx.report.terminal import percent


class Lines:
    """One line for each thing that takes a while, and one for each epoch."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begin = stream, time.perf_counter()

    def note(self, line: str) -> None:
        """Print it with the time."""
        self._stream.write(f"[{time.perf_counter() - self._begin:6.1f} s] {line}\n")
        self._stream.flush()

    def step(self, status: Status) -> None:
        """Nothing: a file does not want a line for each."""

    def epoch(self, row: EpochRow) -> None:
        """Print it."""
        self.note(epoch_line(row))


class Bars:
    """A bar of all steps with what the network is now, the epochs above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, said="")

    def note(self, line: str) -> None:
        """Show it beside the bar."""
        self._progress.update(self._task, said=line)

    def step(self, status: Status) -> None:
        """Move the bar."""
        score = "" if status.map is None else f"  mAP {status.map:.3f}"
        said = (
            f"epoch {status.epoch} of {status.epochs}  loss {status.loss:.3f}  "
            f"FLOPs {percent(status.flops)}  parameters {percent(status.params)}{score}"
        )
        self._progress.update(self._task, completed=status.step, total=status.total, said=said)

    def epoch(self, row: EpochRow) -> None:
        """Leave a line above the bar."""
        self._progress.console.print(epoch_line(row), highlight=False, markup=False)


def epoch_line(row: EpochRow) -> str:
    """An epoch in a line."""
    score = "" if row.map is None else f"  mAP {row.map:.4f}  mAP@.5 {row.map50:.4f}"
    fixed = "  mask fixed" if row.final and row.flops < 1 else ""
    return (
        f"epoch {row.epoch:3d}  step {row.step:6d}  loss {row.loss:7.4f}  FLOPs {percent(row.flops)}  "
        f"parameters {percent(row.params)}{score}{fixed}"
    )


@contextmanager
def run_progress(stream: TextIO | None = None) -> Iterator[Lines | Bars]:
    """Something to watch a run with; standard error by default, so that what a command prints can be piped on."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield Lines(stream)
        return
    with progress_bar(stream) as progress:
        yield Bars(progress)
