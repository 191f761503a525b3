"""What a training run did and what came of it, as plain data, and as the JSON of its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from effp_fx.plan import package_version
from effp_fx.report.terminal import whole


@dataclass(frozen=True)
class Status:
    """Where a run is after a step."""

    step: int
    total: int
    epoch: int
    epochs: int
    loss: float
    flops: float
    """Of the masked network, as a part of the dense one's."""
    params: float
    map: float | None
    """The last that was measured."""


@dataclass(frozen=True)
class EpochRow:
    """One epoch."""

    epoch: int
    step: int
    seconds: float
    """Since the run began, without the time between being cut off and going on."""
    rate: float
    """The learning rate of the last step."""
    losses: dict[str, float]
    """Means over the steps, by the model's own names."""
    flops: float
    params: float
    final: bool
    """Whether the mask is fixed."""
    map: float | None
    map50: float | None

    @property
    def loss(self) -> float:
        """The sum of the losses."""
        return sum(self.losses.values())


@dataclass(frozen=True)
class UpdateRow:
    """One choice of the mask, as `session.Update`."""

    step: int
    flops: float
    params: float
    kept: dict[str, int]
    pruned: int
    regrown: int
    pruning_loss: float


@dataclass(frozen=True)
class Scores:
    """mAP of one network on the validation images."""

    map: float
    map50: float
    voc: float


@dataclass(frozen=True)
class RunReport:
    """A run that is over."""

    model: str
    classes: tuple[str, ...]
    images: int
    judged_images: int
    steps: int
    seconds: float
    """Of training, with the judging after each epoch."""
    flops: float
    """Of the dense network, on one image of the model's own size."""
    params: float
    flops_after: float
    params_after: float
    targets: dict[str, float]
    """What was asked for: parts, or counts above 1."""
    scores: dict[str, Scores]
    """`masked` and `compact`; of a dense run `dense`."""
    judged_in: str
    """The dtype in which both were judged."""
    onnx_error: float | None
    """Largest relative error of the deployed network in ONNX Runtime."""
    milliseconds: dict[str, float]
    """Median latency of the ONNX files in ONNX Runtime, measured in turns on one thread."""
    problems: dict[str, int]
    """What was wrong with the data and left out."""
    rows: tuple[EpochRow, ...]
    updates: tuple[UpdateRow, ...]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def speedup(self) -> float | None:
        """Latency of the masked network over that of the compact one."""
        if not {"masked", "compact"} <= self.milliseconds.keys():
            return None
        return self.milliseconds["masked"] / self.milliseconds["compact"]

    @property
    def map_difference(self) -> float | None:
        """How far apart masked and compact are in mAP and mAP@.5, at most."""
        if not {"masked", "compact"} <= self.scores.keys():
            return None
        masked, compact = self.scores["masked"], self.scores["compact"]
        return max(abs(masked.map - compact.map), abs(masked.map50 - compact.map50))


def run_json(found: RunReport) -> dict[str, Any]:
    """All of it."""
    return {
        "effp_fx": package_version(),
        **asdict(found),
        **{name: whole(getattr(found, name)) for name in ("flops", "params", "flops_after", "params_after")},
        "speedup": found.speedup,
        "map_difference": found.map_difference,
    }


def paths(files: Mapping[str, Path]) -> dict[str, str]:
    """Files as text."""
    return {what: str(path) for what, path in files.items()}
