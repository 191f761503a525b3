"""How a report is shown: rich on a terminal, plain lines of their natural width elsewhere; numbers, bars, progress."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_WIDE = 4000
"""Wider than any line, so that nothing is wrapped or shortened where the reader is a program or a file."""
_FOLDED = 28
"""No text is folded into less."""
_EIGHTHS = "▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Bar:
    """`after` of `before` as a bar `width` cells wide, both as parts of the longest bar."""

    before: float
    after: float
    width: int = 24

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Blocks on a terminal that has them, `#` and `.` elsewhere."""
        full, outline = (max(0.0, min(1.0, part)) * self.width for part in (self.after, self.before))
        if console.is_terminal and not options.ascii_only:
            whole = int(full)
            eighths = int((full - whole) * 8)
            solid = "█" * whole + (_EIGHTHS[eighths - 1] if eighths else "")
            solid = solid or "▏"
            gone = "░" * max(0, round(outline) - len(solid))
            yield Text.assemble((solid, "green"), (gone, "red"))
        else:
            solid = "#" * max(1, round(full))
            yield Text(solid + "." * max(0, round(outline) - len(solid)))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """As wide as the longest bar, so that columns stay in line."""
        return Measurement(self.width, self.width)


@dataclass(frozen=True)
class Fitting:
    """The first of these tables that fits the width of the terminal; where none does, the last."""

    choices: tuple[Table, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The choice is made when it is printed."""
        # A measurement is cut to the width there is, so the question is put to a wider console.
        wide = options.update_width(_WIDE)
        fits = (made for made in self.choices if Measurement.get(console, wide, made).minimum <= options.max_width)
        yield next(fits, self.choices[-1])


def table(*columns: str, title: str = "") -> Table:
    """A table without boxes. A column whose name begins with `>` holds numbers, with `~` text that may be folded."""
    made = Table(box=None, title=title or None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        if name.startswith(">"):
            made.add_column(name[1:], justify="right", no_wrap=True, header_style="bold")
        elif name.startswith("~"):
            made.add_column(name[1:], overflow="fold", min_width=_FOLDED, header_style="bold")
        else:
            made.add_column(name, no_wrap=True, header_style="bold")
    return made


def text(renderable: RenderableType) -> str:
    """The report as plain lines: no colour, no boxes, no trailing blanks, each as wide as it needs to be."""
    stream = io.StringIO()
    console = Console(
        file=stream, width=_WIDE, color_system=None, force_terminal=False, highlight=False, legacy_windows=False
    )
    console.print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def show(renderable: RenderableType, stream: TextIO | None = None) -> None:
    """Print a report: rich where the stream (default: standard output) is a terminal, else as `text`."""
    stream = stream or sys.stdout
    if stream.isatty():
        Console(file=stream, highlight=False).print(renderable)
    else:
        stream.write(text(renderable))
        stream.flush()


@contextmanager
def progress(stream: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """Give a function that is told each step: a spinner on a terminal, elsewhere one line a step with the time.

    The stream is standard error by default, so that what a command prints can be piped on.
    """
    stream = stream or sys.stderr
    begin = time.perf_counter()
    if not stream.isatty():

        def line(step: str) -> None:
            stream.write(f"[{time.perf_counter() - begin:6.1f} s] {step}\n")
            stream.flush()

        yield line
        return
    console = Console(file=stream, highlight=False)
    with console.status("starting") as status:
        yield lambda step: status.update(Text(f"{step}  ({time.perf_counter() - begin:.0f} s)"))


def amount(value: float) -> str:
    """A count with three or four digits and its thousands' letter: 31.4 G, 26.3 M, 512."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            digits = 3 if value < 10 * factor else 2 if value < 100 * factor else 1
            return f"{value / factor:.{digits}f} {letter}"
    return f"{value:.0f}"


def percent(share: float) -> str:
    """A part of a whole: 49.98 %, 0.03 %. Two digits after the point, so that 0.4999 does not pass for a half."""
    return f"{100 * share:.2f} %"


def whole(value: float) -> int | float:
    """A count as JSON has it: without a point where it has no fraction."""
    return int(value) if float(value).is_integer() else float(value)


def timings(seconds: Mapping[str, float]) -> str:
    """`capture 0.80 s, analysis 0.21 s`."""
    return ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
