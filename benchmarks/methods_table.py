"""The page about all methods: from the trainings of methods.py to Markdown, JSON and pictures. Measures nothing."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine, readme
from effp_fx.report.grid_report import GridReport, GridRow, GridRun, grid_json, grid_pictures, grid_rows, spread

LEGEND = """\
Every method trains the same number of epochs on the same images in the same order with the same optimizer; methods of
two sessions share them out, half and half, each half with a warm-up and a cosine of its own. What each does, after
which paper, and where it differs from it, stands in the first lines of its file in `effp_fx/methods/`. FLOPs and
parameters: parts of the dense net's; both were to be at most the target. mAP: in percent, on held-out scenes, mean and
standard deviation over the seeds. Minutes: of one core's time (CPU), all that a method does beside training included.
Latency: median of the whole network in ONNX Runtime, seed 0, all networks in turns. `-`: trained on another machine,
whose times would not compare.
"""
PAPER = {"map": "+0.78 %", "time": "-42 %"}
"""What Ko et al. (2024) report for EFFP against TCFP on SSD at half the FLOPs and half the parameters."""


def write(
    folder: Path,
    found: GridReport,
    shorter: GridReport,
    cells: int,
    scenes: Mapping[str, Any],
    facts: dict[str, str],
) -> None:
    """docs/results/methods.md, methods.json and the pictures; `shorter` is EFFP with fewer epochs."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"machine": facts, "scenes": dict(scenes)}
    text = json.dumps({**about, **grid_json(found), "shorter": grid_json(shorter)}, indent=1)
    (folder / "methods.json").write_text(text + "\n", encoding="utf-8")
    for name, picture in grid_pictures(found).items():
        (folder / f"methods_{name}.svg").write_text(picture, encoding="utf-8")
    (folder / "methods.md").write_text(page(found, shorter, cells, scenes, facts), encoding="utf-8")
    readme.put(folder.parent, "methods", in_short(found))


def in_short(found: GridReport) -> str:
    """The table for the README: the largest target alone, and the dense net."""
    rows = grid_rows(found.runs)
    largest = max((row.target for row in rows if row.target is not None), default=1.0)
    shown = sorted((row for row in rows if row.target in (None, largest)), key=_map, reverse=True)
    lines = [
        "| method | mAP@.5 | mAP@[.5:.95] | seeds | CPU, min |",
        "| --- | --: | --: | --: | --: |",
    ]
    for row in shown:
        scores = spread(row, lambda run: run.map50), spread(row, lambda run: run.map)
        name = f"**{row.method}**" if row.method == "effp" else row.method
        cells = [name, *scores, str(len(row.runs)), _minutes(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", verdict([row for row in rows if row.target == largest], largest)])


def page(found: GridReport, shorter: GridReport, cells: int, scenes: Mapping[str, Any], facts: dict[str, str]) -> str:
    """The whole page; trainings that are missing are counted."""
    rows = grid_rows(found.runs)
    targets = sorted({row.target for row in rows if row.target is not None}, reverse=True)
    failed = [f"- {run.method} at {run.target}, seed {run.seed}: {run.failed}" for run in found.runs if run.failed]
    parts = [
        "# Every method on one bench",
        "Written by `make bench-methods`; the numbers are in [methods.json](methods.json).",
        f"Not trained yet, or failed: {found.missing} of {cells} runs." if found.missing else "",
        machine.as_markdown(facts),
        "- scenes: " + ", ".join(f"{name} {value}" for name, value in scenes.items()),
        f"- net: `{found.model}`, {found.epochs} epochs",
        LEGEND.strip(),
    ]
    dense = [row for row in rows if row.target is None]
    for target in targets:
        own = [row for row in rows if row.target == target]
        parts += [f"## {target:g} of the FLOPs, {target:g} of the parameters", _markdown([*dense, *own])]
        brief = [row for row in grid_rows(shorter.runs) if row.target == target]
        parts += [verdict(own, target), claims(own, brief, found.epochs, shorter.epochs)]
    if targets:
        parts += ["## Pictures", "![mAP over FLOPs](methods_map_over_flops.svg)"]
        parts += ["![mAP over training time](methods_map_over_time.svg)"]
    parts += ["## Failed", "\n".join(failed)] if failed else []
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict(rows: list[GridRow], target: float) -> str:
    """Where EFFP stands among all: each is compared on the seeds that both have."""
    effp = next((row for row in rows if row.method == "effp"), None)
    if effp is None:
        return ""
    gaps = {row.method: _gap(row, effp) for row in rows if row is not effp}
    better = [f"{name} (+{100 * gap:.1f})" for name, gap in gaps.items() if gap is not None and gap > 0]
    if not better:
        return f"At {target:g} EFFP is first."
    return f"At {target:g} ahead of EFFP, in points of mAP over the seeds that both have: {', '.join(better)}."


def _shared(row: GridRow, other: GridRow) -> list[tuple[GridRun, GridRun]]:
    """The runs of two rows seed by seed, of the seeds that both have."""
    theirs = {run.seed: run for run in other.runs}
    return [(run, theirs[run.seed]) for run in row.runs if run.seed in theirs]


def _gap(row: GridRow, other: GridRow) -> float | None:
    """How far a row's mAP is above another's over the seeds that both have; None where they share none."""
    pairs = _shared(row, other)
    return statistics.mean(one.map - two.map for one, two in pairs) if pairs else None


def claims(rows: list[GridRow], brief: list[GridRow], epochs: int, fewer: int) -> str:
    """What the paper claims against TCFP, and what was measured here, over the seeds that both have; nothing where one
    of the two is missing.

    The paper's shorter training is one at no less mAP, so EFFP with fewer epochs stands beside TCFP with all.
    """
    by_name = {row.method: row for row in rows}
    if not {"effp", "tcfp"} <= by_name.keys():
        return ""
    tcfp = by_name["tcfp"]
    lines = ["| EFFP against TCFP | epochs | mAP, points | training time |", "| --- | --: | --: | --: |"]
    for row, many in [(by_name["effp"], epochs), *((row, fewer) for row in brief)]:
        pairs, gap = _shared(row, tcfp), _gap(row, tcfp)
        if gap is None:
            continue
        time = sum(one.cpu_seconds for one, _ in pairs) / sum(two.cpu_seconds for _, two in pairs) - 1
        said = f"{100 * time:+.0f} %" if math.isfinite(time) else "-"
        lines.append(f"| here | {many} against {epochs} | {100 * gap:+.2f} | {said} |")
    return "\n".join([*lines, f"| in the paper | - | {PAPER['map']} | {PAPER['time']} |"])


def _map(row: GridRow) -> float:
    return row.mean(lambda run: run.map)


def _minutes(row: GridRow) -> str:
    minutes = row.mean(lambda run: run.cpu_seconds) / 60
    return f"{minutes:.1f}" if math.isfinite(minutes) else "-"


def _markdown(rows: list[GridRow]) -> str:
    lines = [
        "| | FLOPs | params | mAP@.5 | mAP@[.5:.95] | seeds | CPU, min | latency, ms |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        flops, params = (row.mean(lambda run, kind=kind: getattr(run, kind)) for kind in ("flops", "params"))
        time = "-" if row.milliseconds is None else f"{row.milliseconds:.2f}"
        scores = spread(row, lambda run: run.map50), spread(row, lambda run: run.map)
        cells = [row.method, f"{flops:.3f}", f"{params:.3f}", *scores, str(len(row.runs)), _minutes(row), time]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
