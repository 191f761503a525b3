"""Trains detectors: a small loop, the session on its optimizer, checkpoints that go on bit for bit, a report."""

from effp_fx.train.judging import judge
from effp_fx.train.loop import Loop, moving_average
from effp_fx.train.recipe import Recipe
from effp_fx.train.run import train
from effp_fx.train.task import Task

__all__ = ["Loop", "Recipe", "Task", "judge", "moving_average", "train"]
