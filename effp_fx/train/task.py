"""What a run is asked for, and what is opened for it: the data set, and a model of as many classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from effp_fx import data, models
from effp_fx.data import DetectionDataset, Target, Transform
from effp_fx.data.problems import OnError
from effp_fx.errors import TrainingError
from effp_fx.inputs import Example
from effp_fx.train.loop import check_takes_targets
from effp_fx.train.ranks import Ranks
from effp_fx.train.recipe import Recipe
from effp_fx.train.starting_weights import load_weights

Loader = DataLoader[tuple[Tensor, Target]]

AUGMENTATIONS: Mapping[str, Callable[[int | None], Transform]] = {
    "flip": lambda size: data.BoxTransform([v2.RandomHorizontalFlip(), *([v2.Resize((size, size))] if size else [])]),
    "light": lambda size: data.light_augmentation(size),
    "ssd": lambda size: data.ssd_augmentation(size),
    "none": lambda size: data.as_it_is(size),
}
_COUNTED = ("effp", "torchvision")
"""Families whose detectors are told their number of classes as `num_classes`, the background included."""


@dataclass(frozen=True)
class Task:
    """One training run: everything that decides what comes out of it, and where its files go."""

    model: str
    """A model spec; without `num_classes` our own and torchvision's get that of the data set."""
    data: str
    """A VOC, COCO or YOLO data set, as `data.open_dataset` takes it."""
    out: Path
    recipe: Recipe = field(default_factory=Recipe)
    target_flops: float | None = None
    target_params: float | None = None
    dense: bool = False
    """Train without a session. Without a target and without this half of the FLOPs are the target."""
    session: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the session."""
    weights: Path | None = None
    """A file to begin from, in place of fresh weights."""
    split: str = "train"
    val_split: str = "val"
    augment: str = "light"
    multi_scale: float = 0.0
    """Up to this part larger or smaller, another size for each batch; 0: always the model's own."""
    on_error: OnError = "stop"
    seed: int = 0
    amp: bool = False
    device: str | None = None
    workers: int = 0
    judge_every: int = 1
    """Epochs from one mAP to the next; the last epoch has one in any case."""
    save_every: int = 0
    """Steps from one checkpoint to the next, beside the one after each epoch."""

    def __post_init__(self) -> None:
        rules = (
            ("augment", self.augment, self.augment in AUGMENTATIONS, " or ".join(AUGMENTATIONS)),
            ("multi_scale", self.multi_scale, 0 <= self.multi_scale < 1, "0 or more, below 1"),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
            ("workers", self.workers, self.workers >= 0, "0 or more"),
            ("judge_every", self.judge_every, self.judge_every >= 1, "1 or more"),
            ("save_every", self.save_every, self.save_every >= 0, "0 or more"),
        )
        for name, value, holds, expected in rules:
            if not holds:
                raise TrainingError(f"there is no training with this {name}", seen=repr(value), expected=expected)
        if self.dense and (self.target_flops is not None or self.target_params is not None):
            raise TrainingError("a dense run has no target", seen="dense=True beside a target", mend="give one of them")

    def decides(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that was cut off; plain JSON values."""
        about = asdict(self)
        for name in ("out", "data", "device", "workers", "judge_every", "save_every"):
            del about[name]
        return {**about, "weights": str(self.weights), "session": {k: str(v) for k, v in self.session.items()}}


@dataclass(frozen=True)
class Course:
    """A model and what it is trained and judged on."""

    model: nn.Module
    spec: str
    """From which the model can be built again."""
    example: Example | None
    """Inputs that came with the model; None: its family has some."""
    batches: Loader
    trained_on: DetectionDataset
    judged_on: DetectionDataset

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of their labels, which begin at 1."""
        return self.trained_on.classes


def prepare(task: Task, ranks: Ranks) -> Course:
    """Open the data set and build the model, on its device, with weights drawn from the seed.

    Raises:
        DataError, ModelNameError, FileFormatError, TrainingError.
    """
    trained_on = data.open_dataset(task.data, task.split, on_error=task.on_error)
    judged_on = data.open_dataset(task.data, task.val_split, classes=trained_on.classes, on_error=task.on_error)
    spec = with_classes(task.model, len(trained_on.classes))
    torch.manual_seed(task.seed)
    built = models.build(spec)
    check_takes_targets(built.model)
    if task.weights is not None:
        load_weights(built.model, task.weights)
    trained_on.transforms = AUGMENTATIONS[task.augment](own_size(built.model))
    judged_on.transforms = data.as_it_is()
    batches = data.loader(
        trained_on,
        task.recipe.batch_size,
        shuffle=True,
        seed=task.seed,
        workers=task.workers,
        # A last batch of one image would be too little for a batch norm over a map of one pixel.
        drop_last=len(trained_on) >= task.recipe.batch_size * ranks.world,
        rank=ranks.rank,
        world=ranks.world,
    )
    # Convolutions run faster where the channels of a pixel lie together; the numbers are the same.
    model = built.model.to(ranks.device).to(memory_format=torch.channels_last)
    return Course(model, spec, built.given, batches, trained_on, judged_on)


def judging_batches(task: Task, judged_on: DetectionDataset, ranks: Ranks | None = None) -> Loader:
    """The batches that mAP is measured on: this process's part, or where no ranks are given all."""
    rank, world = (ranks.rank, ranks.world) if ranks is not None else (0, 1)
    return data.loader(judged_on, task.recipe.batch_size, workers=task.workers, rank=rank, world=world)


def with_classes(spec: str, classes: int) -> str:
    """The spec with its number of classes, where its family takes one and it names none."""
    family, _, rest = spec.partition(":")
    if family not in _COUNTED or "num_classes=" in rest:
        return spec
    return f"{spec}{'&' if '?' in rest else '?'}num_classes={classes + 1}"


def own_size(model: nn.Module) -> int | None:
    """The side of the square to which a detector resizes, pixels; None where it keeps the shape of its images."""
    size = getattr(getattr(model, "transform", None), "fixed_size", None)
    return size[0] if size is not None and size[0] == size[1] else None
