"""Write the pages that are generated from the code: docs/errors.md and docs/ops.md. --check: only say what is stale."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from effp_fx import errors
from effp_fx.ops import table

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by `make docs` from the code; edit that, not this. -->"

# How a row treats channel ids, in the order in which the page explains them.
KINDS = {
    "make": "reads the ids of its input, hands out new ones: its weight loses slices on both sides",
    "carry": "passes ids on, and its own parameters and statistics lose the same slices",
    "pass": "passes ids on and owns nothing",
    "tie": "unites the ids that meet in one element",
    "move": "is run on the ids themselves, so its index map is exact whatever it does",
    "pin": "freezes what reaches it, with the reason",
}


class Row(Protocol):
    """What a row of the op table must have for this page: its op's name, its kind, and one sentence or more of doc."""

    name: str
    kind: str
    doc: str


def errors_page() -> str:
    """docs/errors.md: one section for each exception, the parents first, in the order of the file."""
    lines = ["# Errors", "", NOTE, "", sentence(errors.__doc__), ""]
    for error in exceptions():
        parents = ", ".join(f"`{base.__name__}`" for base in error.__bases__)
        lines += [f"## {error.__name__}", "", f"A {parents}.", "", paragraph(error.__doc__), ""]
    return "\n".join(lines)


def exceptions() -> list[type[BaseException]]:
    """Every exception class that errors.py defines, as it stands in the file."""
    found = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, BaseException)]
    return sorted(
        (cls for cls in found if cls.__module__ == errors.__name__), key=lambda cls: inspect.getsourcelines(cls)[1]
    )


def ops_page(rows: Iterable[Row]) -> str:
    """docs/ops.md: the rows of the op table by kind, then by name. An op that is not on it pins."""
    rows = sorted(rows, key=lambda row: (rank(row.kind), row.name))
    count = Counter(row.kind for row in rows)
    lines = ["# Ops", "", NOTE, ""]
    lines += [
        f"effp_fx knows {len(rows)} ops. An op with no row here is never guessed at: every channel that reaches it is",
        "kept, and `effp-fx trace` says so, with the op, the module and the line of your source. To add one, see",
        "`effp_fx.register_op`.",
        "",
        "| kind | rows | what it does |",
        "|---|---|---|",
    ]
    lines += [f"| {kind} | {count[kind]} | {KINDS.get(kind, '')} |" for kind in sorted(count, key=rank)]
    for kind in sorted(count, key=rank):
        lines += ["", f"## {kind}", "", "| op | how |", "|---|---|"]
        lines += [f"| `{row.name}` | {cell(row.doc)} |" for row in rows if row.kind == kind]
    return "\n".join([*lines, ""])


def rank(kind: str) -> tuple[int, str]:
    """The place of a kind on the page: as in KINDS, then by name."""
    known = list(KINDS)
    return (known.index(kind) if kind in known else len(known), kind)


def sentence(doc: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split())


def paragraph(doc: str | None) -> str:
    """A docstring as Markdown, its indentation removed."""
    return inspect.cleandoc(doc or "")


def cell(doc: str) -> str:
    """A docstring's first paragraph as one cell of a table."""
    return sentence(doc).replace("|", "\\|")


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors_page,
    "ops.md": lambda: ops_page(table.rows()),
}


def stale(folder: Path = DOCS) -> list[str]:
    """The names of the generated pages whose text in `folder` is not what the code gives now."""

    def text(name: str) -> str:
        path = folder / name
        return path.read_text(encoding="utf-8") if path.exists() else ""

    return [name for name, page in PAGES.items() if text(name) != page()]


def main() -> int:
    """Write the pages, or with --check say which are stale. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is stale")
    check = parser.parse_args().check
    for name in stale():
        print(f"docs/{name} {'is stale: run `make docs`' if check else 'written'}")
        if check:
            return 1
        (DOCS / name).write_text(PAGES[name](), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
