"""The session's bench: every method on every net and seed, on generated scenes; writes docs/results/session.md.

    python -m benchmarks.session --jobs 2               # all of it, going on where the last run stopped
    python -m benchmarks.session --only 'ssd*EFFP*'     # a part of it
    python -m benchmarks.session --adopt                # what the page has already is not trained again

Every training is a process of its own on one thread. Each is kept as one line in WORK/runs.jsonl as soon as it is done.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import isolated, machine, session_table
from benchmarks.session_grid import SCENES, Cell, cells
from effp_fx.data.scenes import write_scenes

ROOT = Path(__file__).resolve().parent.parent


def finished(journal: Path) -> dict[str, dict[str, Any]]:
    """What is in the journal: name of a cell -> answer. A last line that was cut off by a kill is passed over."""
    done: dict[str, dict[str, Any]] = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["status"] == "ok":
            done[entry["cell"]] = entry
    return done


def adopt(journal: Path, results: Path) -> None:
    """Put into the journal what the page's numbers have and it has not."""
    if not results.exists():
        return
    done = finished(journal)
    known = json.loads(results.read_text(encoding="utf-8"))["runs"]
    with journal.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(entry) + "\n" for name, entry in known.items() if name not in done)


def run(wanted: list[Cell], done: dict[str, Any], journal: Path, data: Path, jobs: int, limit_s: float) -> None:
    """Train what is not done yet."""
    lock = threading.Lock()

    def one(cell: Cell) -> None:
        if cell.name in done:
            return
        answer = isolated.run("benchmarks.session_loop", cell.arguments(data), limit_s=limit_s)
        entry = {"cell": cell.name, **answer}
        with lock:
            with journal.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(entry) + "\n")
            print(
                cell.name, answer["status"], answer.get("map"), answer.get("message", ""), file=sys.stderr, flush=True
            )

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, wanted))


def main() -> None:
    """Draw the scenes, train, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cells whose name matches")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--limit", type=float, default=7200.0, metavar="SECONDS", help="time for one training")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "session", help="where scenes and journal are")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    parser.add_argument("--adopt", action="store_true", help="begin with the trainings that the page has")
    parser.add_argument("--table-only", action="store_true", help="train nothing, write the page from the journal")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    journal, data = options.work / "runs.jsonl", options.work / "scenes"
    if options.adopt:
        adopt(journal, options.docs / "results" / "session.json")
    if not options.table_only:
        write_scenes(data, **SCENES)
        wanted = [cell for cell in cells() if fnmatch.fnmatchcase(cell.name, options.only)]
        if not wanted:
            parser.error(f"no cell matches {options.only!r}")
        run(wanted, finished(journal), journal, data, options.jobs, options.limit)
    session_table.write(options.docs / "results", cells(), finished(journal), machine.describe())


if __name__ == "__main__":
    main()
