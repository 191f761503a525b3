"""All methods x seeds x targets on generated scenes, the small SSD and a YOLO; writes docs/results/methods.md.

    python -m benchmarks.methods --jobs 2                  # all of it, going on where the last run stopped
    python -m benchmarks.methods --only 'ssd/*effp*'       # a part of it
    python -m benchmarks.methods --adopt                   # what the page has already is not trained again
    python -m benchmarks.methods --table-only              # train nothing, write the page

Scenes and recipe are those of the session's bench. Every training is a process of its own on one thread, and what
`effp-fx bench accuracy` would do for the same cell; each is kept as one line in the journal of its grid (WORK/ssd and
so on) as soon as it is done, and one that is cut off goes on after its last whole epoch.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import isolated, machine, methods_table
from benchmarks.session_grid import EPOCHS, NETS, RECIPES, SCENES
from effp_fx.bench import accuracy
from effp_fx.bench.grid import JOURNAL, Cell, Entry, Grid, note, opened
from effp_fx.data.scenes import write_scenes
from effp_fx.methods import METHODS
from effp_fx.report.grid_report import GridReport
from effp_fx.train import Recipe, Task

SEEDS = 3
LESS_TIME = 0.42
"""By how much shorter the paper says EFFP's training is than TCFP's, at no less mAP."""
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Part:
    """One grid of the bench."""

    net: str
    methods: tuple[str, ...] = tuple(METHODS)
    targets: tuple[float, ...] = (0.5,)
    longer: float = 1.0
    """How many times as many epochs as the net is trained for elsewhere."""


PARTS = {
    "ssd": Part("ssd", targets=(0.5, 0.3)),
    "yolo": Part("yolo"),
    "shorter": Part("ssd", ("effp",), longer=1 - LESS_TIME),
    "longer": Part("ssd", ("tcfp",), longer=1 / (1 - LESS_TIME)),
}
"""The whole bench on two nets; EFFP with as few epochs as the paper says that it needs beside TCFP, and TCFP with as
many as it then needs beside EFFP."""


def grid(work: Path, name: str) -> Grid:
    """One of `PARTS`."""
    part = PARTS[name]
    recipe = Recipe(epochs=round(part.longer * EPOCHS[part.net]), lr=RECIPES[part.net].get("learning_rate", Recipe.lr))
    task = Task(NETS[part.net], str(work / "scenes"), work / name, recipe, augment="flip", device="cpu")
    return Grid(task, part.methods, part.targets, seeds=SEEDS)


def run(work: Path, only: str, jobs: int, limit_s: float) -> int:
    """Train what matches and is not done yet, one process each. Returns how many match."""
    lock = threading.Lock()
    grids = {name: grid(work, name) for name in PARTS}
    done = {name: opened(bench) for name, bench in grids.items()}
    wanted = [(name, cell) for name, bench in grids.items() for cell in bench.cells]
    wanted = [(name, cell) for name, cell in wanted if fnmatch.fnmatchcase(f"{name}/{cell.name}", only)]

    def one(asked: tuple[str, Cell]) -> None:
        name, cell = asked
        if done[name].get(cell.name, {}).get("status") == "ok":
            return
        given = ["--work", str(work), "--one", f"{name}/{cell.name}"]
        entry: Entry = {"cell": cell.name, **isolated.run("benchmarks.methods", given, limit_s=limit_s)}
        if entry["status"] not in ("ok", "failed"):  # timeout, crash
            about = {"method": cell.method, "target": cell.target, "seed": cell.seed}
            entry |= {**about, "status": "failed", "message": f"{entry['status']}: {entry.get('message', '')}"}
        with lock:
            note(grids[name].task.out / JOURNAL, entry)
            print(name, cell.name, entry["status"], entry.get("map", entry.get("message")), file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, wanted))
    return len(wanted)


def adopt(bench: Grid, known: list[dict[str, Any]]) -> None:
    """Put into the bench's journal what the page's numbers have and it has not.

    Times are left behind: they are another machine's, and would stand beside this one's.
    """
    done = opened(bench)
    for row in known:
        cell = Cell(row["method"], row["target"], row["seed"])
        if row["failed"] or cell.name in done:
            continue
        entry = {name: row[name] for name in ("method", "target", "seed", "map", "map50")}
        costs = {kind: [1.0, row[kind]] for kind in ("flops", "params")}
        times = {"seconds": math.nan, "cpu_seconds": math.nan}
        note(bench.task.out / JOURNAL, {"cell": cell.name, "status": "ok", **entry, **costs, **times})


def train_one(work: Path, asked: str) -> dict[str, Any]:
    """One cell in this process: `ssd/effp-0.5-0`."""
    torch.set_num_threads(1)
    part, _, name = asked.partition("/")
    bench = grid(work, part)
    return accuracy.attempt(bench, next(cell for cell in bench.cells if cell.name == name))


def main() -> None:
    """Draw the scenes, train, time, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cells whose name matches: ssd/effp-0.5-0")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--limit", type=float, default=7200.0, metavar="SECONDS", help="CPU time of one training")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "methods", help="where scenes and journals are")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    parser.add_argument("--adopt", action="store_true", help="begin with the trainings that the page has")
    parser.add_argument("--table-only", action="store_true", help="train nothing, write the page from the journals")
    parser.add_argument("--one", metavar="CELL", help="train one cell in this process")
    parser.add_argument("--json", type=Path, help="with --one: write the entry there")
    options = parser.parse_args()
    if options.one:
        options.json.write_text(json.dumps(train_one(options.work, options.one)), encoding="utf-8")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    results = options.docs / "results"
    if options.adopt and (results / methods_table.NUMBERS).exists():
        known = json.loads((results / methods_table.NUMBERS).read_text(encoding="utf-8"))
        for name in PARTS:
            adopt(grid(options.work, name), known["parts"][name]["runs"])
    if not options.table_only:
        write_scenes(options.work / "scenes", **SCENES)
        if not run(options.work, options.only, options.jobs, options.limit):
            parser.error(f"no cell matches {options.only!r}")
    found = {name: _report(grid(options.work, name), timing=PARTS[name].methods == tuple(METHODS)) for name in PARTS}
    methods_table.write(results, found, SCENES, machine.describe(PACKAGES))


def _report(bench: Grid, *, timing: bool) -> GridReport:
    """Of what is done, without the paths of this machine."""
    done = opened(bench)
    found = accuracy.written(bench, done, accuracy.timed(bench, done) if timing else {})
    return replace(found, data="generated scenes", files={})


PACKAGES = ("torch", "torchvision", "torch-pruning", "onnxruntime")

if __name__ == "__main__":
    main()
