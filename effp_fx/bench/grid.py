"""The trainings of an accuracy bench: methods x targets x seeds, and the journal of those that are done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from effp_fx import atomic_file
from effp_fx.errors import TrainingError
from effp_fx.methods import Budget, find_method
from effp_fx.train import Task

JOURNAL, ABOUT = "journal.jsonl", "bench.json"
_WITHOUT_TARGET = "dense"
Entry = dict[str, Any]
"""What came of one training; plain JSON."""


@dataclass(frozen=True)
class Cell:
    """One training."""

    method: str
    target: float | None
    """Kept part (or count) of the FLOPs; None: the dense network has none."""
    seed: int

    @property
    def name(self) -> str:
        """Unique in a bench, and in a file system: `effp-0.5-0`."""
        return "-".join(str(part) for part in (self.method, self.target, self.seed) if part is not None)


@dataclass(frozen=True)
class Grid:
    """A whole bench. Raises NameNotFoundError for an unknown method, TrainingError for numbers that make no sense."""

    task: Task
    """What all trainings have in common; `out` is the folder of the bench, and the seed counts from 0."""
    methods: tuple[str, ...]
    targets: tuple[float, ...] = (0.5,)
    """Kept FLOPs."""
    target_params: float | None = None
    """Kept parameters; None: as the FLOPs."""
    seeds: int = 3
    round_to: int = 1

    def __post_init__(self) -> None:
        for name in self.methods:
            find_method(name)
        rules = (
            ("methods", self.methods, len(set(self.methods)) == len(self.methods) > 0, "each name once"),
            ("targets", self.targets, len(set(self.targets)) == len(self.targets) > 0, "each target once"),
            ("seeds", self.seeds, self.seeds >= 1, "1 or more"),
            ("moving average", self.task.recipe.ema, not self.task.recipe.ema, "none: methods deploy what they train"),
        )
        for name, value, holds, expected in rules:
            if not holds:
                raise TrainingError(f"there is no bench with this {name}", seen=repr(value), expected=expected)

    @property
    def cells(self) -> list[Cell]:
        """All trainings, seed after seed, so that a bench that is cut off has all methods alike."""
        return list(self._cells())

    def budget(self, cell: Cell) -> Budget:
        """What a cell's method has to reach, with all the epochs of the recipe."""
        target = 1.0 if cell.target is None else cell.target
        params = self.target_params if self.target_params is not None and cell.target is not None else target
        ignore = tuple(self.task.session.get("ignore", ()))
        return Budget(self.task.recipe.epochs, target, params, self.round_to, cell.seed, ignore)

    def task_of(self, cell: Cell) -> Task:
        """The common task with the cell's own seed."""
        return replace(self.task, seed=cell.seed)

    def decides(self) -> dict[str, Any]:
        """What two benches must share for the trainings of one to stand beside those of the other; plain JSON."""
        about = self.task.decides()
        del about["seed"]
        about |= {"data": str(self.task.data), "target_params": self.target_params, "round_to": self.round_to}
        found: dict[str, Any] = json.loads(json.dumps(about, default=str))
        return found

    def _cells(self) -> Iterator[Cell]:
        for seed in range(self.seeds):
            for method in self.methods:
                for target in (None,) if method == _WITHOUT_TARGET else self.targets:
                    yield Cell(method, target, seed)


def opened(grid: Grid, *, overwrite: bool = False) -> dict[str, Entry]:
    """The trainings that are done in the bench's folder, by name; the folder is made where there is none.

    Raises TrainingError where the folder holds a bench of other models, data or recipes.
    """
    folder = grid.task.out
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in (ABOUT, JOURNAL):
            (folder / name).unlink(missing_ok=True)
    about = folder / ABOUT
    if about.exists():
        _check_same(json.loads(about.read_text(encoding="utf-8")), grid.decides(), about)
    else:
        atomic_file.write(about, (json.dumps(grid.decides(), indent=2) + "\n").encode())
    return finished(folder / JOURNAL)


def finished(journal: Path) -> dict[str, Entry]:
    """What is in the journal, by the cell's name; of several lines the last counts, one that was cut off does not."""
    done: dict[str, Entry] = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
        try:
            entry: Entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[entry["cell"]] = entry
    return done


def note(journal: Path, entry: Entry) -> None:
    """Add a line."""
    with journal.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(entry) + "\n")


def _check_same(then: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    differing = [name for name in now if then.get(name) != now[name]]
    if differing:
        name = differing[0]
        raise TrainingError(
            f"the folder holds a bench with another {' and '.join(differing)}",
            where=str(where),
            seen=str(then.get(name)),
            expected=str(now[name]),
            mend="give the options that it was begun with, --overwrite to begin anew, or another folder",
        )
