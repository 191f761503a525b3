"""An accuracy bench while it goes: one bar over the epochs of all trainings on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.progress import Progress

from effp_fx.report.progress_bar import progress_bar


class GridLines:
    """A line for each training and each epoch, with the time and what is left of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begin = stream, time.perf_counter()
        self._first: int | None = None

    def note(self, line: str) -> None:
        """Print it."""
        self._stream.write(f"[{time.perf_counter() - self._begin:6.1f} s] {line}\n")
        self._stream.flush()

    def epoch(self, done: int, total: int, said: str) -> None:
        """Print how far the bench is."""
        self._first = done - 1 if self._first is None else self._first
        left = (time.perf_counter() - self._begin) / max(done - self._first, 1) * (total - done)
        self.note(f"{said}; {done} of {total} epochs, about {left / 60:.0f} min left")


class GridBars:
    """One bar; what is over stays above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, said="")

    def note(self, line: str) -> None:
        """Leave a line."""
        self._progress.console.print(line, highlight=False, markup=False)

    def epoch(self, done: int, total: int, said: str) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total, said=said)


@contextmanager
def grid_progress(stream: TextIO | None = None) -> Iterator[GridLines | GridBars]:
    """Something to watch a bench with; standard error by default."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield GridLines(stream)
        return
    with progress_bar(stream) as progress:
        yield GridBars(progress)
