"""What a run tells whoever watches it."""

from __future__ import annotations

from typing import Protocol

from effp_fx.report.run_report import EpochRow, Status


class Watch(Protocol):
    """Told how a run goes; what it raises ends the run."""

    def note(self, line: str) -> None:
        """Something begins that takes a while."""

    def step(self, status: Status) -> None:
        """A step was taken."""

    def epoch(self, row: EpochRow) -> None:
        """An epoch is over, and its checkpoint written."""


class Silent:
    """Says nothing."""

    def note(self, line: str) -> None:
        """Nothing."""

    def step(self, status: Status) -> None:
        """Nothing."""

    def epoch(self, row: EpochRow) -> None:
        """Nothing."""


__all__ = ["EpochRow", "Silent", "Status", "Watch"]
