"""One training on generated scenes, by one method, in this process: a plain loop, and the line that EFFP adds."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import effp_fx
from benchmarks import session_methods
from effp_fx.data.voc import open_voc
from effp_fx.evaluate.detection import DetectionEvaluator
from effp_fx.models import build

Images = Tensor
Targets = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How a net is trained: one for all methods. Weight decay is not applied to biases and norms."""

    epochs: int
    batch: int = 16
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: int = 100
    clip: float = 10.0
    final: float = 0.01
    """The cosine ends at this part of the learning rate."""


@dataclass
class Scenes:
    """A data set in memory."""

    images: Images
    """uint8 (N, 3, H, W)."""
    targets: Targets
    classes: tuple[str, ...]

    @staticmethod
    def read(folder: Path, split: str) -> Scenes:
        """All of a split."""
        found = open_voc(folder, split)
        samples = [found[index] for index in range(len(found))]
        targets = [target for _, target in samples]
        return Scenes(torch.stack([image for image, _ in samples]), targets, tuple(found.classes))

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[list[Tensor], Targets]]:
        """Shuffled batches, every second image mirrored; the last, smaller one is left out."""
        order = torch.randperm(len(self.targets), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            flips = torch.rand(size, generator=generator) < 0.5
            images = self.images[rows].float().div_(255)
            targets = []
            for place, row in enumerate(rows.tolist()):
                boxes = self.targets[row]["boxes"].clone()
                if flips[place]:
                    images[place] = images[place].flip(-1)
                    boxes[:, [0, 2]] = images.shape[-1] - boxes[:, [2, 0]]
                targets.append({"boxes": boxes, "labels": self.targets[row]["labels"]})
            yield list(images.contiguous(memory_format=torch.channels_last)), targets


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum over two groups."""
    decayed = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, recipe.learning_rate, momentum=recipe.momentum, nesterov=True)


def train(
    model: nn.Module, scenes: Scenes, recipe: Recipe, seed: int, attach: Callable[..., Any] = lambda *_: None
) -> Any:
    """Train for `recipe.epochs`; `attach(model, optimizer, steps)` may put a session on it, which is returned."""
    optimizer = optimizer_for(model, recipe)
    steps = recipe.epochs * (len(scenes.targets) // recipe.batch)
    session = attach(model, optimizer, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, recipe))
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(recipe.epochs):
        for images, targets in scenes.batches(recipe.batch, generator):
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
    return session


def _rate(step: int, steps: int, recipe: Recipe) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / recipe.warm_up) * (recipe.final + (1 - recipe.final) * cosine)


def score(model: nn.Module, scenes: Scenes) -> dict[str, float]:
    """mAP of a detector, COCO's."""
    model.eval()
    judge = DetectionEvaluator(scenes.classes)
    with torch.no_grad():
        for start in range(0, len(scenes.targets), 50):
            images = scenes.images[start : start + 50].float().div_(255)
            found = model(list(images.contiguous(memory_format=torch.channels_last)))
            judge.update(found, scenes.targets[start : start + 50])
    result = judge.compute()
    return {"map": result.map, "map50": result.map50}


def main() -> None:
    """Run one method and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("method")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--recipe", type=json.loads, default={}, help="fields of Recipe, as JSON")
    parser.add_argument("--options", type=json.loads, default={}, help="options of the session, as JSON")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    scenes, held_out = Scenes.read(given.data, "train"), Scenes.read(given.data, "val")
    model = build(given.model).model.to(memory_format=torch.channels_last)
    begin = time.process_time()
    recipe = Recipe(epochs=given.epochs, **given.recipe)
    run = session_methods.Run(model, scenes, recipe, given.seed, given.target, given.options, train, score)
    trained = session_methods.METHODS_BY_TITLE[given.method](run)
    seconds = time.process_time() - begin
    plan = getattr(trained, "effp_plan", None)
    summary = dict(effp_fx.plan_of(trained).summary) if plan else {}
    result = {"status": "ok", **score(trained, held_out), "cpu_s": round(seconds, 1), "summary": summary}
    given.json.write_text(json.dumps(result | run.notes), encoding="utf-8")


if __name__ == "__main__":
    main()
