"""Detectors whose export is measured after they were trained on drawn scenes, dense or pruned in the same session."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import export_scenes
from effp_fx import models
from effp_fx.data import write_scenes
from effp_fx.inputs import Example
from effp_fx.train.ranks import joined
from effp_fx.train.recipe import Recipe
from effp_fx.train.run import Run
from effp_fx.train.task import Task, prepare
from effp_fx.train.watch import Silent

_SIDE = 96
_IMAGES, _EPOCHS = 400, 12


@dataclass(frozen=True)
class Trained:
    """A detector of ours that learns the scenes in a minute or two on one core."""

    name: str
    spec: str
    side: int | None = _SIDE
    truth: str = "drawn"

    def network(self, kind: str) -> tuple[nn.Module, Example]:
        """The trained detector, "dense" or "pruned" to half its FLOPs on the way, and a scene as its input."""
        with tempfile.TemporaryDirectory() as folder:
            data = write_scenes(Path(folder) / "scenes", images=_IMAGES, val_images=8, test_images=0, size=_SIDE)
            task = Task(
                self.spec,
                str(data),
                Path(folder),
                Recipe(epochs=_EPOCHS),
                target_flops=None if kind == "dense" else 0.5,
                dense=kind == "dense",
                augment="flip",
                judge_every=_EPOCHS,
            )
            with joined("cpu") as ranks:
                run = Run(task, prepare(task, ranks), ranks, Silent())
                run.train()
        model = run.model if run.session is None else run.session.compact()
        model.eval().to(memory_format=torch.contiguous_format)
        picture = np.asarray(export_scenes.draw(1, _SIDE)[0].image)
        return model, export_scenes.fed([picture], model, models.example_for(model))


TRAINED = (
    Trained("SSD, small, trained", "effp:ssd_small"),
    Trained("YOLO, small, trained", "effp:yolo_small"),
)
