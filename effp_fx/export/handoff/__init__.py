"""The bundle for the person at the board: a network, and what builds, checks and runs it there."""

from effp_fx.export.handoff.preprocessing import Preprocess
from effp_fx.export.handoff.write import HandoffReport, handoff

__all__ = ["HandoffReport", "Preprocess", "handoff"]
