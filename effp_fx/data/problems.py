"""What is wrong with a data set: each problem with file and line, stopped at or skipped, and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

from effp_fx.errors import DataError

OnError = Literal["stop", "skip"]
Kind = Literal[
    "missing image",
    "corrupt image",
    "missing annotation",
    "malformed annotation",
    "wrong image size",
    "box outside the image",
    "box without area",
    "unknown class",
    "duplicated id",
]
Outcome = Literal["image left out", "box left out", "box clipped", "one of them kept"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        kind: one of KINDS.
        where: the file, with ":line" where a line is at fault.
        seen: what was met there.
        outcome: what becomes of it where problems are skipped.
    """

    kind: Kind
    where: str
    seen: str
    outcome: Outcome = "image left out"

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.seen}"


@dataclass
class DataReport:
    """What was read and what was left out.

    Args:
        on_error: "stop" raises at the first problem, "skip" notes it and leaves the image or the box out.
    """

    on_error: OnError = "stop"
    images: int = 0
    boxes: int = 0
    difficult: int = 0
    empty: int = 0
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.on_error not in get_args(OnError):
            raise DataError("on_error is not known", seen=repr(self.on_error), expected='"stop" or "skip"')

    def note(self, problem: Problem) -> None:
        """Keep a problem; raises it as DataError where it is to stop."""
        if self.on_error == "stop":
            raise DataError(problem.kind, where=problem.where, seen=problem.seen, mend=_MEND)
        self.problems.append(problem)

    def counts(self) -> dict[Kind, int]:
        """How often each kind of problem was met, those that were met only, in the order of KINDS."""
        met = Counter(problem.kind for problem in self.problems)
        return {kind: met[kind] for kind in KINDS if met[kind]}


_MEND = 'mend the file, or pass on_error="skip" to leave it out and have it counted'
