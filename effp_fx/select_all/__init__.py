"""Replays post-processing as if every selection selected everything: boxes and scores of every anchor come out."""

from effp_fx.select_all.replay import Replay
from effp_fx.select_all.values import Known, Rows

__all__ = ["Known", "Replay", "Rows"]
