"""The zoo: every model of zoo_models.py through effp_fx, Torch-Pruning beside it; writes docs/zoo.md and its JSON.

    python -m benchmarks.zoo --jobs 2                    # all of it, going on where the last run stopped
    python -m benchmarks.zoo --only 'ssd*' --redo ours   # a part of it again

Every measurement is a process of its own on one thread, under a time limit. Each is kept as one line in
WORK/parts.jsonl as soon as it is done; the last line about a model and a part counts.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import isolated, machine, readme, torch_pruning_rival, zoo_table
from benchmarks.zoo_models import ZooModel, zoo

PARTS = ("ours", "nothing", "recipe")  # ours, then Torch-Pruning told nothing, then told the recipe of its examples
ROOT = Path(__file__).resolve().parent.parent
Parts = dict[tuple[str, str], dict[str, Any]]


def measure(spec: str, part: str, limits_s: dict[str, float]) -> dict[str, Any]:
    """One part of one model, in a process of its own."""
    limit_s = limits_s[part]
    if part == "ours":
        return {"spec": spec, **isolated.run("benchmarks.zoo_ours", [spec], limit_s=limit_s)}
    return torch_pruning_rival.measure(spec, part, limit_s=limit_s)


def finished(journal: Path) -> Parts:
    """What is in the journal: (spec, part) -> answer. A last line that was cut off by a kill is passed over."""
    done: Parts = {}
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[entry["spec"], entry["part"]] = entry
    return done


def adopt(journal: Path, results: Path) -> None:
    """Put into the journal what the page's numbers have and it has not."""
    if not results.exists():
        return
    done = finished(journal)
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    known = [{**row[part], "spec": row["spec"], "part": part} for row in rows for part in PARTS if row[part]]
    with journal.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(entry) + "\n" for entry in known if (entry["spec"], entry["part"]) not in done)


def run(models: Iterable[ZooModel], done: Parts, journal: Path, *, jobs: int, limits_s: dict[str, float]) -> None:
    """Measure what is not done yet, of the parts that have a limit; those of a model one after the other."""
    lock = threading.Lock()
    facts = machine.describe()

    def one(model: ZooModel) -> None:
        for part in limits_s:
            if (model.spec, part) in done:
                continue
            taken = {"date": facts["date"], "command": facts["command"], "jobs": jobs}
            entry = {"spec": model.spec, "part": part, **taken, **measure(model.spec, part, limits_s)}
            with lock:
                done[model.spec, part] = entry
                with journal.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(entry) + "\n")
                report(entry)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, models))


def report(entry: dict[str, Any]) -> None:
    """One line to stderr for a part that is done."""
    kept = "" if entry.get("flops_kept") is None else f"{entry['flops_kept']:.4f} of the FLOPs"
    words = [
        entry["spec"],
        entry["part"],
        entry["status"],
        kept,
        entry.get("message") or "",
        f"{entry['wall_s']:.0f} s",
    ]
    print("  ".join(word for word in words if word), file=sys.stderr, flush=True)


def write(done: Parts, models: list[ZooModel], folder: Path) -> None:
    """docs/zoo.md and docs/results/zoo.json from what is done so far, with the date and command of the measurements."""
    facts, entries = machine.describe(), list(done.values())
    if entries:
        dates = sorted(entry["date"] for entry in entries)
        facts["date"] = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        facts["command"] = entries[-1]["command"]
        facts["processes side by side"] = str(max(entry["jobs"] for entry in entries))
    rows = []
    for model in models:
        parts = {part: done.get((model.spec, part)) for part in PARTS}
        rows.append({"spec": model.spec, "group": model.group, "is_cnn": model.is_cnn, **parts})
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "zoo.json").write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    (folder / "zoo.md").write_text(zoo_table.page(facts, rows), encoding="utf-8")
    readme.put(folder, "zoo", zoo_table.in_short(rows))


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", help="models whose spec or group matches *PATTERN*")
    parser.add_argument("--jobs", type=int, default=1, help="models side by side; their times disturb each other")
    parser.add_argument("--limit", type=float, default=600.0, metavar="SECONDS", help="time for one measurement")
    parser.add_argument("--rival-limit", type=float, default=300.0, metavar="SECONDS", help="for Torch-Pruning")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this part only; may be repeated")
    parser.add_argument("--redo", choices=(*PARTS, "all"), action="append", default=[], help="measure this part again")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "zoo", help="where the journal is kept")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    parser.add_argument("--adopt", action="store_true", help="begin with the measurements that the page has")
    parser.add_argument("--table-only", action="store_true", help="measure nothing, write the page from the journal")
    options = parser.parse_args()
    limits_s = {part: options.limit if part == "ours" else options.rival_limit for part in options.part or PARTS}
    options.work.mkdir(parents=True, exist_ok=True)
    journal = options.work / "parts.jsonl"
    if options.adopt:
        adopt(journal, options.docs / "results" / "zoo.json")
    done, models = finished(journal), zoo()
    pattern = f"*{options.only}*" if options.only else "*"
    chosen = [m for m in models if fnmatch.fnmatch(m.spec, pattern) or fnmatch.fnmatch(m.group, pattern)]
    if not chosen:
        parser.error(f"no model matches {options.only!r}")
    again = PARTS if "all" in options.redo else options.redo
    specs = {model.spec for model in chosen}
    pending = {key: entry for key, entry in done.items() if not (key[0] in specs and key[1] in again)}
    if not options.table_only:
        run(chosen, pending, journal, jobs=options.jobs, limits_s=limits_s)
    write(finished(journal), models, options.docs)


if __name__ == "__main__":
    main()
