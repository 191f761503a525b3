"""The report of a bundle: what it is for, what was checked, which files it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from effp_fx.report.tensorrt_report import check_json, check_table
from effp_fx.report.terminal import table

if TYPE_CHECKING:
    from effp_fx.export.handoff import HandoffReport


def handoff_table(found: HandoffReport) -> RenderableType:
    """The check of the file for its target, the errors of the export, then the files."""
    errors = table("output", ">relative error")
    for name, error in found.export.max_relative_error.items():
        errors.add_row(name, f"{error:.1e}")
    files = table(str(found.folder))
    for name in found.files:
        files.add_row(name)
    if found.archive is not None:
        files.add_row(str(found.archive))
    notes = Text("\n".join(found.notes)) if found.notes else Text("")
    return Group(check_table(found.check), Text(), errors, Text(), files, notes)


def handoff_json(found: HandoffReport) -> dict[str, Any]:
    """The same as data."""
    return {
        "folder": str(found.folder),
        "files": list(found.files),
        "archive": str(found.archive) if found.archive else None,
        "part": found.export.part,
        "opset": found.export.opset,
        "max_relative_error": found.export.max_relative_error,
        "check": check_json(found.check),
        "notes": list(found.notes),
    }
