"""The page about the zoo: from the rows of zoo.py to Markdown. Knows no model and measures nothing."""

from __future__ import annotations

import statistics
from collections import Counter
from datetime import date, timedelta
from itertools import groupby
from typing import Any

from benchmarks import machine

EXACT = 1e-9
Row = dict[str, Any]

LEGEND = """\
Every model is built with random weights, then every scale, shift, statistic and bias is randomised, so that each of
them matters. The target is half the FLOPs (`torch.utils.flop_counter`).

- **FLOPs, params**: what is left, over dense. **1 channel**: whether the FLOPs are under the target by no more than one
  channel costs. A target in brackets: 0.5 cannot be reached there; `unreachable`: nor can 0.95, for all channels hang
  together. The largest reason is at the end of the section.
- **error**: masked network against compact network, the largest relative difference over all outputs, float64. For
  Torch-Pruning: what it left against the dense network with the channels that it cut zeroed, over the outputs and over
  every layer that lost nothing. `ok` means at most 1e-9.
- **s**: for effp_fx capture, analysis, trial lowering, plan and lowering; for Torch-Pruning building the graph and one
  step of pruning at the ratio that was found, which leaves out the search for that ratio. Processor seconds of one
  thread each, so that what else runs counts little. Each part has its date and command in the JSON; times that were
  taken more than a day apart are not compared. **MiB**: the process's peak, torch included.
- **nothing told**: the model and its inputs only. **recipe**: what the examples of Torch-Pruning tell it about that
  family. Its ratio is found as its own reproduction script does it, in steps of 2 % of the channels.
- `wrong`: it runs, and computes something else (outputs of another shape, where nothing told it to keep the classes;
  or other values); `no-forward`: what is left does not run; `crash`: graph or pruning
  failed.
"""


def page(facts: dict[str, str], rows: list[Row]) -> str:
    """The whole page; models that were not measured are counted, not shown."""
    shown = [row for row in rows if _measured(row)]
    made_by = "Written by `make zoo`; the numbers are in [results/zoo.json](results/zoo.json)."
    missing = f"Not measured yet: {len(rows) - len(shown)} of {len(rows)} models." if len(shown) < len(rows) else ""
    parts = ["# The zoo", made_by, missing, machine.as_markdown(facts), LEGEND.strip(), "## In short", summary(shown)]
    for group, members in groupby(shown, key=lambda row: row["group"]):
        models = list(members)
        parts += [f"## {group}", ours_table(models), "Torch-Pruning beside it:", rival_table(models), _notes(models)]
    return "\n\n".join(part for part in parts if part) + "\n"


def in_short(rows: list[Row]) -> str:
    """The table for the README."""
    return summary([row for row in rows if _measured(row)])


def summary(rows: list[Row]) -> str:
    """How each tool fares with the models of each group."""
    head = ["", "models", "effp_fx exact", "effp_fx at 0.5", "TP, nothing told", "TP, recipe", "time, effp_fx / recipe"]
    lines = [_summary_line(group, list(members)) for group, members in groupby(rows, key=lambda row: row["group"])]
    return _table(head, [*lines, _summary_line("**all**", rows)])


def _summary_line(name: str, rows: list[Row]) -> list[str]:
    exact = sum(_exact(row["ours"]) for row in rows)
    reached = sum(bool(row["ours"]) and row["ours"]["status"] == "ok" for row in rows)
    ratios = [ratio for row in rows if (ratio := _time_ratio(row)) is not None]
    times = f"{statistics.median(ratios):.2f} (median of {len(ratios)})" if ratios else "-"
    return [name, str(len(rows)), str(exact), str(reached), _counts(rows, "nothing"), _counts(rows, "recipe"), times]


def _counts(rows: list[Row], part: str) -> str:
    """How often each status came, "ok" first and always there."""
    counts = Counter(row[part]["status"] for row in rows if row[part])
    words = [f"{counts.pop('ok', 0)} ok", *(f"{count} {status}" for status, count in counts.most_common())]
    return ", ".join(words)


def ours_table(rows: list[Row]) -> str:
    """What effp_fx found and left, one line a model."""
    head = ["model", "nodes", "groups", "prunable", "FLOPs", "params", "1 channel", "error", "train step"]
    head += ["capture", "analysis", "trial", "plan", "lowering", "MiB"]
    return _table(head, [_ours_line(row) for row in rows])


def _ours_line(row: Row) -> list[str]:
    ours = row["ours"]
    if not ours or ours.get("flops_kept") is None:
        found = ["-"] * 3 if not ours or ours.get("nodes") is None else _found(ours)
        return [_name(row), *found, _status(ours), *["-"] * 10]
    target = "" if ours["target"] == 0.5 else f" ({ours['target']})"
    seconds = [_number(ours["seconds"].get(part), 2) for part in ("capture", "analysis", "trial", "plan", "lowering")]
    trains = "yes" if ours["train_step"] == "yes" else "no"
    within = "yes" if ours["within_one_channel"] else "no"
    reached = [_number(ours["flops_kept"], 4) + target, _number(ours["params_kept"], 3), within]
    return [_name(row), *_found(ours), *reached, _error(ours), trains, *seconds, _number(ours["peak_mib"], 0)]


def _found(ours: Row) -> list[str]:
    return [str(ours["nodes"]), str(ours["groups"]), _number(ours["prunable"], 3)]


def rival_table(rows: list[Row]) -> str:
    """The three side by side: status, FLOPs left, error, seconds."""
    head = ["model"]
    for who in ("effp_fx", "TP, nothing told", "TP, recipe"):
        head += [who, "FLOPs", "error", "s"]
    return _table([*head, "time, effp_fx / recipe"], [_rival_line(row) for row in rows])


def _rival_line(row: Row) -> list[str]:
    cells = [_name(row)]
    for part in ("ours", "nothing", "recipe"):
        entry = row[part]
        kept = entry.get("flops_kept") if entry else None
        cells += [_status(entry), _number(kept, 4), _error(entry), _number(_seconds(entry), 2)]
    ratio = _time_ratio(row)
    return [*cells, "-" if ratio is None else f"{ratio:.2f}"]


def _seconds(entry: Row | None) -> float | None:
    """What the steps that both tools have took, or None where they did not all happen."""
    if not entry:
        return None
    if "seconds" in entry:
        parts = [entry["seconds"].get(part) for part in ("capture", "analysis", "trial", "plan", "lowering")]
    else:
        parts = [entry.get("graph_s"), entry.get("prune_s")]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _time_ratio(row: Row) -> float | None:
    """Our seconds over Torch-Pruning's, only where it got through with a network that runs, within a day of ours."""
    if not row["recipe"] or row["recipe"]["status"] not in ("ok", "wrong"):
        return None
    days = [date.fromisoformat(row[part]["date"]) for part in ("ours", "recipe") if row[part] and "date" in row[part]]
    if len(days) == 2 and abs(days[0] - days[1]) > timedelta(days=1):
        return None
    ours, theirs = _seconds(row["ours"]), _seconds(row["recipe"])
    return ours / theirs if ours is not None and theirs else None


def _exact(entry: Row | None) -> bool:
    return bool(entry) and entry is not None and entry.get("error") is not None and entry["error"] <= EXACT


def _notes(rows: list[Row]) -> str:
    names = {"ours": "effp_fx", "nothing": "TP, nothing told", "recipe": "TP, recipe"}
    lines = []
    for row in rows:
        for part, who in names.items():
            entry = row[part]
            if entry and entry.get("message"):
                lines.append(f"- {_name(row)}, {who}: {entry['status']}. `{entry['message']}`")
        if row["ours"] and row["ours"].get("train_step") not in (None, "yes"):
            lines.append(f"- {_name(row)}, effp_fx, train step: `{row['ours']['train_step']}`")
    return "<details><summary>What went wrong</summary>\n\n" + "\n".join(lines) + "\n\n</details>" if lines else ""


def _name(row: Row) -> str:
    return str(row["spec"]).partition(":")[2].partition("?")[0].removesuffix(".yaml")


def _measured(row: Row) -> bool:
    return any(row[part] for part in ("ours", "nothing", "recipe"))


def _status(entry: Row | None) -> str:
    return str(entry["status"]) if entry else "not measured"


def _error(entry: Row | None) -> str:
    if not entry or entry.get("flops_kept") is None:
        return "-"
    return "shape" if entry.get("error") is None else f"{entry['error']:.0e}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])
