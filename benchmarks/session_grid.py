"""What the session's bench trains: nets, methods, seeds, and one change at a time from the defaults."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCENES: dict[str, Any] = {
    "images": 2000,
    "val_images": 400,
    "test_images": 1,
    "size": 64,
    "difficulty": 0.2,
    "smallest": 12,
    "most": 3,
    "seed": 0,
}
NETS = {"ssd": "effp:ssd_small?num_classes=13&size=64", "yolo": "effp:yolo_small?num_classes=13&size=64"}
EPOCHS = {"ssd": 20, "yolo": 8}
RECIPES: dict[str, dict[str, Any]] = {"ssd": {"learning_rate": 0.05}, "yolo": {}}
OURS, FOR_FLOPS = "EFFP", "EFFP, FLOPs alone"
METHODS = ("dense", "uniform", "one-shot gamma", "one-shot L1", "EFFP without regrowing", OURS, FOR_FLOPS)
SEEDS = {"dense": 12, OURS: 12, FOR_FLOPS: 6}
"""How many, of methods that have more than `FEWER`: those between which it is close."""
FEWER = 3

# One change at a time from the defaults, on the YOLO-like net: it is the one that a wrong choice hurts most.
ABLATED = "yolo"
ABLATIONS: dict[str, list[dict[str, Any]]] = {
    "drift": [{"drift": value} for value in (0.0, 0.1, 0.3)],
    "alpha": [{"alpha": value} for value in (0.1, 10.0)],
    "threshold": [{"threshold": value} for value in (0.001, 0.1)],
    "schedule": [{"start": 0.05}, {"start": 0.2}, {"end": 0.2}, {"end": 0.5}, {"end": 0.75}],
    "shrink": [{"shrink": value} for value in (0.0, 20.0, 50.0, 100.0)],
    "regrow": [{"regrow": 0.5}],
    "regrow by": [{"regrow_by": "random"}],
    "importance": [{"importance": "l1"}],
}
COST_RULES = ("EFFP, groups by dense cost", "EFFP without cost")
ABLATION_SEEDS = (0, 1)


@dataclass(frozen=True)
class Cell:
    """One training."""

    net: str
    method: str
    seed: int
    group: str = "main"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique, and what `--only` matches: `main/ssd/EFFP/0`."""
        changed = json.dumps(self.options, sort_keys=True) if self.options else ""
        return f"{self.group}/{self.net}/{self.method}{changed}/{self.seed}"

    def arguments(self, data: Path) -> list[str]:
        """For `benchmarks.session_loop`."""
        return [
            NETS[self.net],
            self.method,
            *("--data", str(data), "--epochs", str(EPOCHS[self.net]), "--seed", str(self.seed)),
            *("--recipe", json.dumps(RECIPES[self.net]), "--options", json.dumps(self.options)),
        ]


def cells() -> list[Cell]:
    """All trainings, those first whose order in time matters least to the table."""
    main = [
        Cell(net, method, seed)
        for seed in range(max(FEWER, *SEEDS.values()))
        for net in NETS
        for method in METHODS
        if seed < SEEDS.get(method, FEWER)
    ]
    changed = [
        Cell(ABLATED, "EFFP", seed, group, options)
        for seed in ABLATION_SEEDS
        for group, several in ABLATIONS.items()
        for options in several
    ]
    changed += [Cell(ABLATED, method, seed, "cost") for method in COST_RULES for seed in ABLATION_SEEDS]
    return main + changed
