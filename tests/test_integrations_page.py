"""The table of docs/integrations.md is what the result files say, and every cell says yes, why not, or nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import integrations, integrations_map

CELL = re.compile(r"yes|-|no: .+")


def rows() -> list[dict[str, str]]:
    return [json.loads(line) for path in integrations.FILES for line in path.read_text().splitlines()]


def test_the_rows_have_these_keys_and_such_cells() -> None:
    assert rows(), "nothing was run"
    for row in rows():
        assert list(row) == list(integrations.COLUMNS)
        wrong = {key: row[key] for key in row if key not in ("tool", "model", "note") and not CELL.fullmatch(row[key])}
        assert not wrong, (row["tool"], row["model"], wrong)


def test_the_page_holds_the_table_of_the_files() -> None:
    page = integrations.PAGE.read_text(encoding="utf-8")
    shown = page.partition(integrations.BEGIN)[2].partition(integrations.END)[0].strip()
    assert shown == integrations.table(rows()), "python -m benchmarks.integrations --table"


def test_writing_the_table_changes_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{integrations.BEGIN}\nold\n{integrations.END}\nafter\n")
    row = dict.fromkeys(integrations.COLUMNS, "-") | {"tool": "one", "exports": "no: a | b"}
    results = tmp_path / "rows.jsonl"
    results.write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(integrations, "PAGE", page)
    monkeypatch.setattr(integrations, "FILES", (results, tmp_path / "not yet run.jsonl"))
    integrations.write_table()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| one | - | - | - | - | - | - | no: a \\| b | - | - |" in text


def test_a_number_that_is_off_and_an_error_give_their_reason() -> None:
    assert integrations._close(1.0, 1.00001) == "yes"
    assert integrations._close(1.0, 2.0) == "no: outputs 1, of the compact model 2"
    assert integrations._reason("Traceback\nValueError: this\n  and more") == "no: ValueError: this"


def test_the_table_of_the_readme_is_what_the_runs_of_yolo_say(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("before\n<!-- map:begin -->\nold\n<!-- map:end -->\nafter\n")
    where = tmp_path / "docs" / "results" / "page.md"
    where.parent.mkdir(parents=True)
    run = {"model": "a.yaml", "epochs": 15, "images": 1000, "flops": 1.0, "params": 1.0, "map50": 0.8, "seconds": 1.0}
    found = [
        run | {"method": method, "seed": seed, "map50_95": value, "cpu_seconds": 1.0, "flops": part}
        for method, seed, value, part in (("dense", 0, 0.6, 1.0), ("dense", 1, 0.5, 1.0), ("effp", 1, 0.4, 0.5))
    ]
    integrations_map.write(where, found)
    assert "| a.yaml | dense | 0 | 15 |" in where.read_text()
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| a.yaml | 1 | 0.500 | 0.400 | 50.0% | 100.0% |" in text
