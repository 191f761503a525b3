"""Trains every cell of a grid that is not in the journal yet, times the networks, and writes results and pictures."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from effp_fx import atomic_file, store
from effp_fx.bench.grid import JOURNAL, Cell, Entry, Grid, note, opened
from effp_fx.errors import EffpError, TrainingError
from effp_fx.evaluate.latency import interleaved, onnx_call
from effp_fx.export import export_onnx
from effp_fx.inputs import map_tensors
from effp_fx.methods import find_method
from effp_fx.methods.base import Outcome
from effp_fx.plan import ATTRIBUTE
from effp_fx.report.grid_report import GridReport, GridRun, grid_json, grid_pictures
from effp_fx.train import judge
from effp_fx.train.ranks import joined
from effp_fx.train.task import Course, judging_batches, prepare
from effp_fx.train.trainer import CourseTrainer

RESULTS = "results.json"
_ROUNDS, _MOST_SECONDS = 30, 120.0


class Watch(Protocol):
    """Told how a bench goes."""

    def note(self, line: str) -> None:
        """Something begins, or is over."""

    def epoch(self, done: int, total: int, said: str) -> None:
        """An epoch is over: so many of the whole grid's."""


def run(grid: Grid, watch: Watch, *, overwrite: bool = False) -> GridReport:
    """Run a bench, or what is left of it.

    A training that fails is noted with its error and does not stop the others; it is tried again when the bench is run
    again. One that is cut off goes on after its last whole epoch.

    Raises:
        TrainingError: the folder holds another bench, or this is one of several processes.
        Whatever the data set raises.
    """
    done = {name: entry for name, entry in opened(grid, overwrite=overwrite).items() if entry["status"] == "ok"}
    cells = grid.cells
    epochs = grid.task.recipe.epochs
    before = sum(epochs for cell in cells if cell.name in done)
    for number, cell in enumerate(cells, start=1):
        if cell.name in done:
            continue
        said = f"{cell.name}, training {number} of {len(cells)}"
        watch.note(said)

        def after(epoch: int, before: int = before, said: str = said) -> None:
            watch.epoch(before + epoch, epochs * len(cells), f"{said}, epoch {epoch} of {epochs}")

        entry = attempt(grid, cell, after)
        note(grid.task.out / JOURNAL, entry)
        done[cell.name] = entry
        before += epochs
        watch.note(f"{cell.name}: " + (f"mAP {entry['map']:.4f}" if entry["status"] == "ok" else entry["message"]))
    watch.note("time the networks in ONNX Runtime")
    return written(grid, done, timed(grid, done))


def attempt(grid: Grid, cell: Cell, after: Any = lambda _: None) -> Entry:
    """The journal's entry for one training, a failure included."""
    try:
        return train_cell(grid, cell, after)
    except EffpError as error:
        return {"cell": cell.name, **asdict(cell), "status": "failed", "message": " ".join(str(error).split())}


def train_cell(grid: Grid, cell: Cell, after: Any = lambda _: None) -> Entry:
    """Train one network by one method, judge it, and leave its files in the folder.

    `seconds` are those of the whole method: its own work beside training counts, judging and export do not.
    """
    task = grid.task_of(cell)
    folder = task.out / "cells" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    with joined(task.device) as ranks:
        if ranks.world > 1:
            raise TrainingError("a bench is run by one process", seen=f"{ranks.world} of them")
        course = prepare(task, ranks)
        trainer = CourseTrainer(task, course, folder, after)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        found = find_method(cell.method)(course.model, trainer, grid.budget(cell))
        seconds = time.perf_counter() - begin + trainer.seconds_before
        cpu_seconds = time.process_time() - cpu_begin + trainer.cpu_seconds_before
        scores = judge(found.model, judging_batches(task, course.judged_on), course.classes)
        files = _files(cell, folder, course, found)
    trainer.forget()
    return {
        "cell": cell.name,
        **asdict(cell),
        "status": "ok",
        "epochs": trainer.epoch,
        "map": scores.map,
        "map50": scores.map50,
        "flops": list(found.flops),
        "params": list(found.params),
        "error": found.error,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "files": files,
        "notes": found.notes,
    }


def timed(grid: Grid, done: dict[str, Entry]) -> dict[str, float]:
    """Median milliseconds of the networks of seed 0 in ONNX Runtime, in turns on one thread, by cell."""
    named = {
        cell.name: grid.task.out / done[cell.name]["files"]["onnx"]
        for cell in grid.cells
        if done.get(cell.name, {}).get("files", {}).get("onnx")
    }
    calls = {name: onnx_call(path, threads=1) for name, path in named.items() if path.exists()}
    if not calls:
        return {}
    found = interleaved(calls, rounds=_ROUNDS, most_seconds=_MOST_SECONDS)
    return {taken.name: 1e3 * taken.median for taken in found}


def written(grid: Grid, done: dict[str, Entry], milliseconds: dict[str, float]) -> GridReport:
    """The report of what is done, with its files written."""
    folder, task = grid.task.out, grid.task
    runs = [_run(cell, done[cell.name], milliseconds.get(cell.name)) for cell in grid.cells if cell.name in done]
    pictures = {f"map_over_{what}": str(folder / f"map_over_{what}.svg") for what in ("flops", "time")}
    found = GridReport(
        model=task.model,
        data=str(task.data),
        epochs=task.recipe.epochs,
        runs=tuple(runs),
        missing=len(grid.cells) - sum(run.failed is None for run in runs),
        files={"results": str(folder / RESULTS), **pictures},
    )
    for name, picture in grid_pictures(found).items():
        atomic_file.write(folder / f"{name}.svg", picture.encode())
    atomic_file.write(folder / RESULTS, (json.dumps(grid_json(found), indent=2) + "\n").encode())
    return found


def _run(cell: Cell, entry: Entry, milliseconds: float | None) -> GridRun:
    if entry["status"] != "ok":
        return GridRun(cell.method, cell.target, cell.seed, failed=entry["message"])
    return GridRun(
        cell.method,
        cell.target,
        cell.seed,
        flops=entry["flops"][1] / entry["flops"][0],
        params=entry["params"][1] / entry["params"][0],
        map=entry["map"],
        map50=entry["map50"],
        seconds=entry["seconds"],
        cpu_seconds=entry["cpu_seconds"],
        milliseconds=milliseconds,
    )


def _files(cell: Cell, folder: Path, course: Course, found: Outcome) -> dict[str, str]:
    """Write the network, where it has a plan, and of seed 0 its ONNX; names relative to the bench's folder."""
    files: dict[str, str] = {}
    network: nn.Module = copy.deepcopy(found.model).cpu().eval()
    base = folder.parent.parent
    if hasattr(found.model, ATTRIBUTE):
        path = store.save(network, folder / "small.safetensors", built_from=course.spec)
        files["model"] = str(Path(path).relative_to(base))
    if cell.seed == 0:
        example = None if course.example is None else map_tensors(lambda tensor: tensor.cpu(), course.example)
        export_onnx(network, folder / "small.onnx", example)
        files["onnx"] = str((folder / "small.onnx").relative_to(base))
    return files
