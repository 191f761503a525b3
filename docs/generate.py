"""Write the pages that are generated from the code: docs/errors.md and docs/ops.md. --check: only say what is stale."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from effp_fx import errors, ops

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by `make docs` from the code; edit that, not this. -->"

def errors_page() -> str:
    """docs/errors.md: one section for each exception, the parents first, in the order of the file."""
    lines = ["# Errors", "", NOTE, "", sentence(errors.__doc__), ""]
    for error in exceptions():
        parents = ", ".join(f"`{base.__name__}`" for base in error.__bases__)
        lines += [f"## {error.__name__}", "", f"Caught as `{error.__name__}`, {parents}.", "", prose(error.__doc__), ""]
    return "\n".join(lines)


def exceptions() -> list[type[BaseException]]:
    """Every exception class that errors.py defines, as it stands in the file."""
    found = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, BaseException)]
    return sorted(
        (cls for cls in found if cls.__module__ == errors.__name__), key=lambda cls: inspect.getsourcelines(cls)[1]
    )


def ops_page(rows: Iterable[ops.Row]) -> str:
    """docs/ops.md: the rows of the op table by kind, in the order of ops.KINDS, then by name."""
    rows = sorted(rows, key=lambda row: row.name)
    count = Counter(row.kind for row in rows)
    lines = ["# Ops", "", NOTE, ""]
    lines += [
        f"effp_fx knows {len(rows)} ops. An op with no row here is never guessed at: every channel that reaches it is",
        "kept, and `effp-fx trace` says so, with the op, the module and the line of your source. To add one, see",
        "`effp_fx.register_op`. An op in place has the row of its twin that is not.",
        "",
        "| kind | rows | what it does |",
        "|---|---|---|",
    ]
    kinds = sorted(count, key=list(ops.KINDS).index)
    lines += [f"| [{kind}](#{kind}) | {count[kind]} | {ops.KINDS[kind]} |" for kind in kinds]
    for kind in kinds:
        lines += ["", f"## {kind}", "", *table([row for row in rows if row.kind == kind])]
    return "\n".join([*lines, ""])


def sentence(doc: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split())


def prose(doc: str | None) -> str:
    """A docstring as Markdown, up to the list of its arguments."""
    return inspect.cleandoc(doc or "").split("\nArgs:\n")[0].rstrip()


def table(rows: list[ops.Row]) -> list[str]:
    """The lines of one table: ops that are treated in the same words share a row."""
    alike: dict[str, list[str]] = {}
    for row in rows:
        alike.setdefault(sentence(row.doc).replace("|", "\\|"), []).append(f"`{row.name}`")
    return ["| op | how |", "|---|---|", *(f"| {' '.join(names)} | {doc} |" for doc, names in alike.items())]


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors_page,
    "ops.md": lambda: ops_page(ops.rows()),
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
