"""The page about the session: from the runs of session.py to Markdown and JSON. Measures nothing."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.session_grid import ABLATED, EPOCHS, FOR_FLOPS, NETS, OURS, SCENES, Cell

Done = dict[str, dict[str, Any]]

LEGEND = """\
Every method trains the same number of epochs on the same images in the same order with the same optimizer; methods of
two sessions share them out, half and half, each half with a learning-rate schedule of its own. FLOPs and parameters:
part of the dense net's (`-`: the dense net itself). mAP: in percent, on held-out scenes, mean and standard deviation
over the seeds; of EFFP, that of the compact net, which computes what the masked one does. CPU: minutes of one core.
"""


def write(folder: Path, cells: list[Cell], done: Done, facts: dict[str, str]) -> None:
    """docs/results/session.md and session.json from what is done so far."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {cell.name: _told(done[cell.name]) for cell in cells if cell.name in done}
    text = json.dumps({"machine": facts, "scenes": SCENES, "nets": NETS, "epochs": EPOCHS, "runs": kept}, indent=1)
    (folder / "session.json").write_text(text + "\n", encoding="utf-8")
    (folder / "session.md").write_text(page(cells, kept, facts), encoding="utf-8")


def _told(run: dict[str, Any]) -> dict[str, Any]:
    """A run with the channels that its last update kept, by group; all twenty of all runs would be megabytes."""
    told = {name: value for name, value in run.items() if name != "updates"}
    return told | {"kept": run["updates"][-1]["kept"]} if run.get("updates") else told


def page(cells: list[Cell], done: Done, facts: dict[str, str]) -> str:
    """The whole page; trainings that are missing are counted."""
    missing = sum(cell.name not in done for cell in cells)
    parts = [
        "# The session against its baselines",
        "Written by `make bench-session`; the numbers are in [session.json](session.json).",
        f"Not trained yet: {missing} of {len(cells)} runs." if missing else "",
        machine.as_markdown(facts),
        "- scenes: " + ", ".join(f"{name} {value}" for name, value in SCENES.items()),
        LEGEND.strip(),
    ]
    for net, spec in NETS.items():
        rows = _rows(cells, done, net, "main")
        parts += [f"## `{spec}`, {EPOCHS[net]} epochs", _markdown(rows), verdict(rows)]
    parts += [
        "## One change at a time",
        f"EFFP on `{ABLATED}`; the first line is EFFP with the defaults, on the same seeds. Runs of this net deviate "
        "by two points from seed to seed (above), so what lies within three is no difference.",
        _changes(cells, done),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict(rows: dict[str, list[dict[str, Any]]]) -> str:
    """By how much the mAP of EFFP is above that of each other row, in points, over the seeds that both have."""
    by_seed = {name: {run["cell"].rpartition("/")[2]: 100 * run["map"] for run in runs} for name, runs in rows.items()}
    said = []
    for name in (name for name in (OURS, FOR_FLOPS) if name in by_seed):
        others = [other for other in by_seed if other not in (OURS, FOR_FLOPS)]
        gaps = [_gap(by_seed[name], by_seed[other], other) for other in others]
        if any(gaps):
            said.append(f"{name}: {', '.join(gap for gap in gaps if gap)}.")
    if not said:
        return ""
    about = "In points of mAP@[.5:.95], mean and standard error over the seeds of both."
    return "\n".join([about, "", *(f"- {line}" for line in said)])


def _gap(one: dict[str, float], other: dict[str, float], name: str) -> str:
    found = [one[seed] - other[seed] for seed in one if seed in other]
    if not found:
        return ""
    error = f" ± {statistics.stdev(found) / len(found) ** 0.5:.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):+.1f}{error} over {name} ({len(found)})"


def _rows(cells: Iterable[Cell], done: Done, net: str, group: str) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        if cell.net == net and cell.group == group and cell.name in done:
            rows[cell.method].append(done[cell.name])
    return dict(rows)


def _changes(cells: Iterable[Cell], done: Done) -> str:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    listed = list(cells)
    changed = [cell for cell in listed if cell.group != "main"]
    seeds = {cell.seed for cell in changed}
    defaults = [cell for cell in listed if cell.group == "main" and cell.method == "EFFP"]
    same_net = [cell for cell in defaults if changed and cell.net == changed[0].net and cell.seed in seeds]
    for cell in [*same_net, *changed]:
        if cell.name not in done:
            continue
        options = ", ".join(f"{name}={value}" for name, value in cell.options.items())
        rows[options or ("defaults" if cell.group == "main" else cell.method)].append(done[cell.name])
    return _markdown(rows)


def _markdown(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| | FLOPs | params | mAP@.5 | mAP@[.5:.95] | seeds | CPU |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for name, runs in rows.items():
        flops, params = (_kept(runs, kind) for kind in ("flops", "params"))
        minutes = statistics.mean(run["cpu_s"] for run in runs) / 60
        cells = [name, flops, params, _spread(runs, "map50"), _spread(runs, "map"), str(len(runs)), f"{minutes:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _kept(runs: list[dict[str, Any]], kind: str) -> str:
    summaries = [run["summary"] for run in runs if run["summary"]]
    if not summaries:
        return "-"
    return f"{statistics.mean(one[f'{kind}_after'] / one[f'{kind}_before'] for one in summaries):.3f}"


def _spread(runs: list[dict[str, Any]], kind: str) -> str:
    values = [100 * run[kind] for run in runs]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"
