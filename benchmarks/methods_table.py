"""The page about all methods: from the trainings of methods.py to Markdown, JSON and pictures. Measures nothing."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine, readme
from effp_fx.report.grid_report import GridReport, GridRow, GridRun, grid_json, grid_pictures, grid_rows, spread

LEGEND = """\
Every method trains the same number of epochs on the same images in the same order with the same optimizer; methods of
two sessions share them out, half and half, each half with a warm-up and a cosine of its own. What each does, after
which paper, and where it differs from it, stands in the first lines of its file in `effp_fx/methods/`. FLOPs and
parameters: parts of the dense net's; both were to be at most the target. mAP: in percent, on held-out scenes, mean and
standard deviation over the seeds. Minutes: of one core's time (CPU), all that a method does beside training included.
Latency: median of the whole network in ONNX Runtime, one thread, seed 0, all networks in turns. `-`: trained on another
machine, whose times would not compare.
"""
LENGTHS = ("shorter", "longer")
"""The grids that are trained for longer or shorter than the others."""
PAPER = {"map": "+0.78 %", "time": "-42 %"}
"""What Ko et al. (2024) report for EFFP against TCFP on SSD at half the FLOPs and half the parameters."""


NUMBERS = "methods.json"


def write(folder: Path, found: Mapping[str, GridReport], scenes: Mapping[str, Any], facts: dict[str, str]) -> None:
    """docs/results/methods.md, methods.json and the pictures.

    Args:
        folder: docs/results.
        found: by the name of the grid: those of a net with all methods, and `shorter`, EFFP, and `longer`, TCFP, with
            fewer and more epochs; the first one is also what the pictures and the README show.
        scenes: what the data set was made from.
        facts: of the machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {"machine": facts, "scenes": dict(scenes)}
    text = json.dumps({**about, "parts": {name: grid_json(part) for name, part in found.items()}}, indent=1)
    (folder / NUMBERS).write_text(text + "\n", encoding="utf-8")
    first = next(iter(found.values()))
    for name, picture in grid_pictures(first).items():
        (folder / f"methods_{name}.svg").write_text(picture, encoding="utf-8")
    (folder / "methods.md").write_text(page(found, scenes, facts), encoding="utf-8")
    readme.put(folder.parent, "methods", in_short(found))


def in_short(found: Mapping[str, GridReport]) -> str:
    """The table for the README: mAP of every method on each net at its largest target, in the order of the first."""
    nets = [part for name, part in found.items() if name not in LENGTHS]
    columns = [_largest(part) for part in nets]
    methods = list(dict.fromkeys(row.method for rows in columns for row in rows))
    lines = [
        "| method | " + " | ".join(f"`{part.model.partition('?')[0]}`, {part.epochs} epochs" for part in nets) + " |",
        "| --- |" + " --: |" * len(nets),
    ]
    for method in methods:
        own = [next((row for row in rows if row.method == method), None) for rows in columns]
        scores = ["-" if row is None else f"{spread(row, lambda run: run.map)} ({len(row.runs)})" for row in own]
        name = f"**{method}**" if method == "effp" else method
        lines.append("| " + " | ".join([name, *scores]) + " |")
    verdicts = [
        verdict([row for row in rows if row.target is not None], part) for rows, part in zip(columns, nets, strict=True)
    ]
    return "\n".join([*lines, "", *(f"- {line}" for line in verdicts if line)])


def _largest(found: GridReport) -> list[GridRow]:
    """The rows of the largest target, and the dense net's, the best first."""
    rows = grid_rows(found.runs)
    largest = max((row.target for row in rows if row.target is not None), default=1.0)
    return sorted((row for row in rows if row.target in (None, largest)), key=_map, reverse=True)


def page(found: Mapping[str, GridReport], scenes: Mapping[str, Any], facts: dict[str, str]) -> str:
    """The whole page; trainings that are missing are counted."""
    missing = sum(part.missing for part in found.values())
    failed = [
        f"- {name}, {run.method} at {run.target}, seed {run.seed}: {run.failed}"
        for name, part in found.items()
        for run in part.runs
        if run.failed
    ]
    other = [found[name] for name in LENGTHS if name in found]
    parts = [
        "# Every method on one bench",
        f"Written by `make bench-methods`; the numbers are in [{NUMBERS}]({NUMBERS}).",
        f"Not trained yet, or failed: {missing} runs." if missing else "",
        machine.as_markdown(facts),
        "- scenes: " + ", ".join(f"{name} {value}" for name, value in scenes.items()),
        LEGEND.strip(),
    ]
    for name, part in found.items():
        if name not in LENGTHS:
            parts += _net(part, [one for one in other if one.model == part.model])
    if any(part.runs for part in found.values()):
        parts += ["## Pictures", "Of the first net."]
        parts += [
            "![mAP over FLOPs](methods_map_over_flops.svg)",
            "![mAP over training time](methods_map_over_time.svg)",
        ]
    parts += ["## Failed", "\n".join(failed)] if failed else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _net(found: GridReport, other: list[GridReport]) -> list[str]:
    """All about one net; `other` are trainings of other lengths on it."""
    rows = grid_rows(found.runs)
    dense = [row for row in rows if row.target is None]
    parts = [f"## `{found.model}`, {found.epochs} epochs"]
    for target in sorted({row.target for row in rows if row.target is not None}, reverse=True):
        own = [row for row in rows if row.target == target]
        parts += [f"### {target:g} of the FLOPs, {target:g} of the parameters", _markdown([*dense, *own])]
        lengths = [Trained(row, one.epochs) for one in other for row in grid_rows(one.runs) if row.target == target]
        parts += [verdict(own, found), claims([Trained(row, found.epochs) for row in own], lengths)]
    return parts


def verdict(rows: list[GridRow], found: GridReport) -> str:
    """Where EFFP stands among all at one target: each is compared on the seeds that both have."""
    effp = next((row for row in rows if row.method == "effp"), None)
    if effp is None:
        return ""
    at = f"`{found.model.partition('?')[0]}` at {effp.target:g}"
    gaps = {row.method: _gap(row, effp) for row in rows if row is not effp}
    better = [f"{name} (+{100 * gap:.1f})" for name, gap in gaps.items() if gap is not None and gap > 0]
    if not better:
        return f"{at}: EFFP is first."
    return f"{at}: ahead of EFFP, in points of mAP over the seeds that both have: {', '.join(better)}."


def _shared(row: GridRow, other: GridRow) -> list[tuple[GridRun, GridRun]]:
    """The runs of two rows seed by seed, of the seeds that both have."""
    theirs = {run.seed: run for run in other.runs}
    return [(run, theirs[run.seed]) for run in row.runs if run.seed in theirs]


def _gap(row: GridRow, other: GridRow) -> float | None:
    """How far a row's mAP is above another's over the seeds that both have; None where they share none."""
    pairs = _shared(row, other)
    return statistics.mean(one.map - two.map for one, two in pairs) if pairs else None


class Trained(NamedTuple):
    """A row, and for how many epochs its networks were trained."""

    row: GridRow
    epochs: int


def claims(rows: list[Trained], lengths: list[Trained]) -> str:
    """What the paper claims against TCFP, and what was measured here, over the seeds that both have; nothing where one
    of the two is missing.

    The paper's shorter training is one at no less mAP, so EFFP with fewer epochs stands beside TCFP with all, and EFFP
    with all beside TCFP with more.
    """
    effp, tcfp = ([one for one in rows if one.row.method == name] for name in ("effp", "tcfp"))
    if not effp or not tcfp:
        return ""
    pairs = [(effp[0], tcfp[0])]
    pairs += [(one, tcfp[0]) for one in lengths if one.row.method == "effp"]
    pairs += [(effp[0], one) for one in lengths if one.row.method == "tcfp"]
    lines = ["| EFFP against TCFP | epochs | mAP, points | training time |", "| --- | --: | --: | --: |"]
    for ours, theirs in pairs:
        shared, gap = _shared(ours.row, theirs.row), _gap(ours.row, theirs.row)
        if gap is None:
            continue
        time = sum(one.cpu_seconds for one, _ in shared) / sum(two.cpu_seconds for _, two in shared) - 1
        said = f"{100 * time:+.0f} %" if math.isfinite(time) else "-"
        lines.append(f"| here | {ours.epochs} against {theirs.epochs} | {100 * gap:+.2f} | {said} |")
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
