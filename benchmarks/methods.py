"""All methods x seeds x targets on the small SSD and generated scenes; writes docs/results/methods.md.

    python -m benchmarks.methods --jobs 2                  # all of it, going on where the last run stopped
    python -m benchmarks.methods --only '*effp*'           # a part of it
    python -m benchmarks.methods --adopt                   # what the page has already is not trained again
    python -m benchmarks.methods --table-only              # train nothing, write the page

Scenes and recipe are those of the session's bench. Every training is a process of its own on one thread, and what
`effp-fx bench accuracy` would do for the same cell; each is kept as one line in WORK/journal.jsonl as soon as it is
done, and one that is cut off goes on after its last whole epoch.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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

NET = "ssd"
TARGETS = (0.5, 0.3)
SEEDS = 3
LESS_TIME = 0.42
"""By how much shorter the paper says EFFP's training is than TCFP's, at no less mAP."""
ROOT = Path(__file__).resolve().parent.parent


def grid(work: Path, *, short: bool = False) -> Grid:
    """The whole bench; or the short one, EFFP alone with as many epochs as the paper says that it needs."""
    epochs = round((1 - LESS_TIME) * EPOCHS[NET]) if short else EPOCHS[NET]
    recipe = Recipe(epochs=epochs, lr=RECIPES[NET].get("learning_rate", Recipe.lr))
    out = work / "short" if short else work
    task = Task(NETS[NET], str(work / "scenes"), out, recipe, augment="flip", device="cpu")
    return Grid(task, ("effp",) if short else tuple(METHODS), TARGETS, seeds=SEEDS)


def run(bench: Grid, given: list[str], only: str, jobs: int, limit_s: float) -> int:
    """Train what matches and is not done yet, one process each; `given` tells a process which grid it is of.

    Returns how many match.
    """
    done, lock = opened(bench), threading.Lock()
    wanted = [cell for cell in bench.cells if fnmatch.fnmatchcase(cell.name, only)]

    def one(cell: Cell) -> None:
        if done.get(cell.name, {}).get("status") == "ok":
            return
        answer = isolated.run("benchmarks.methods", [*given, "--one", cell.name], limit_s=limit_s)
        entry: Entry = {"cell": cell.name, **answer}
        if entry["status"] not in ("ok", "failed"):  # timeout, crash
            about = {"method": cell.method, "target": cell.target, "seed": cell.seed}
            entry |= {**about, "status": "failed", "message": f"{entry['status']}: {entry.get('message', '')}"}
        with lock:
            note(bench.task.out / JOURNAL, entry)
            print(cell.name, entry["status"], entry.get("map", entry.get("message")), file=sys.stderr, flush=True)

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


def train_one(bench: Grid, name: str) -> dict[str, Any]:
    """One cell in this process."""
    torch.set_num_threads(1)
    cell = next(cell for cell in bench.cells if cell.name == name)
    return accuracy.attempt(bench, cell)


def main() -> None:
    """Draw the scenes, train, time, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cells whose name matches: effp-0.5-0")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--limit", type=float, default=7200.0, metavar="SECONDS", help="CPU time of one training")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "methods", help="where scenes and journal are")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    parser.add_argument("--adopt", action="store_true", help="begin with the trainings that the page has")
    parser.add_argument("--table-only", action="store_true", help="train nothing, write the page from the journal")
    parser.add_argument("--short", action="store_true", help="with --one: a cell of the short grid")
    parser.add_argument("--one", metavar="CELL", help="train one cell in this process")
    parser.add_argument("--json", type=Path, help="with --one: write the entry there")
    options = parser.parse_args()
    if options.one:
        entry = train_one(grid(options.work, short=options.short), options.one)
        options.json.write_text(json.dumps(entry), encoding="utf-8")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    bench, short = grid(options.work), grid(options.work, short=True)
    if options.adopt and (options.docs / "results" / "methods.json").exists():
        known = json.loads((options.docs / "results" / "methods.json").read_text(encoding="utf-8"))
        adopt(bench, known["runs"])
        adopt(short, known["shorter"]["runs"])
    if not options.table_only:
        write_scenes(options.work / "scenes", **SCENES)
        given = ["--work", str(options.work)]
        matched = run(bench, given, options.only, options.jobs, options.limit)
        matched += run(short, [*given, "--short"], options.only, options.jobs, options.limit)
        if not matched:
            parser.error(f"no cell matches {options.only!r}")
    done = opened(bench)
    found = accuracy.written(bench, done, accuracy.timed(bench, done))
    shorter = accuracy.written(short, opened(short), {})
    facts = machine.describe(PACKAGES)
    methods_table.write(options.docs / "results", _told(found), _told(shorter), len(bench.cells), SCENES, facts)


def _told(found: GridReport) -> GridReport:
    """The report without the paths of this machine."""
    return replace(found, data="generated scenes", files={})


PACKAGES = ("torch", "torchvision", "torch-pruning", "onnxruntime")

if __name__ == "__main__":
    main()
