"""Puts a table of a bench into the README, between the two marks that bear the bench's name."""

from __future__ import annotations

from pathlib import Path


def put(folder: Path, bench: str, table: str) -> None:
    """Replace what stands between `<!-- BENCH:begin -->` and `<!-- BENCH:end -->` in the README beside `folder`.

    A README that is not there, or has no such marks, stays as it is: a bench may write its pages anywhere.
    """
    readme = folder.parent / "README.md"
    if not readme.is_file():
        return
    before, begin, rest = readme.read_text(encoding="utf-8").partition(f"<!-- {bench}:begin -->")
    _, end, after = rest.partition(f"<!-- {bench}:end -->")
    if begin and end:
        readme.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}", encoding="utf-8")
