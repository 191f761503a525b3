"""The report of a data set: what its splits hold, how often each class occurs, what is wrong and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType

from effp_fx.data.inspection import SplitCheck
from effp_fx.report.terminal import table


def data_table(checks: Sequence[SplitCheck], most: int = 20) -> RenderableType:
    """Splits, classes, kinds of problems, and the first `most` problems with file and line."""
    held = table("split", ">images", ">without objects", ">boxes", ">difficult", ">problems")
    for one in checks:
        found = one.report
        numbers = (found.images, found.empty, found.boxes, found.difficult, len(found.problems))
        held.add_row(one.split, *map(str, numbers))
    classes = table("class", *(f">{one.split}" for one in checks))
    for name in dict.fromkeys(name for one in checks for name in one.per_class):
        classes.add_row(name, *(str(one.per_class.get(name, 0)) for one in checks))
    parts: list[RenderableType] = [held, "", classes]
    problems = [(one.split, problem) for one in checks for problem in one.report.problems]
    if problems:
        kinds = table("problem", *(f">{one.split}" for one in checks))
        counts = [one.report.counts() for one in checks]
        for kind in dict.fromkeys(kind for count in counts for kind in count):
            kinds.add_row(kind, *(str(count.get(kind, 0)) for count in counts))
        listed = table("where", "problem", "seen", "outcome")
        for _, problem in problems[:most]:
            listed.add_row(problem.where, problem.kind, problem.seen, problem.outcome)
        parts += ["", kinds, "", listed]
    if len(problems) > most:
        parts.append(f"... and {len(problems) - most} more (--json lists all)")
    return Group(*parts)


def data_json(checks: Sequence[SplitCheck]) -> list[dict[str, Any]]:
    """All of it, every problem included."""
    return [
        {
            "split": one.split,
            "images": one.report.images,
            "without_objects": one.report.empty,
            "boxes": one.report.boxes,
            "difficult": one.report.difficult,
            "per_class": one.per_class,
            "problem_counts": dict(one.report.counts()),
            "problems": [
                {"kind": problem.kind, "where": problem.where, "seen": problem.seen, "outcome": problem.outcome}
                for problem in one.report.problems
            ],
        }
        for one in checks
    ]
