"""The page of the session's bench says by how much EFFP is above the others on the seeds that both have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import session_table
from benchmarks.session_grid import FOR_FLOPS, OURS, Cell, cells


def run(cell: Cell, score: float, params: float = 0.5) -> dict[str, Any]:
    summary = {"flops_before": 2, "flops_after": 1, "params_before": 1.0, "params_after": params}
    return {"cell": cell.name, "map": score, "map50": score, "cpu_s": 60.0, "summary": summary}


def test_gaps_are_over_the_seeds_that_both_have() -> None:
    scores = {
        "dense": {0: 0.5, 1: 0.6, 2: 0.9},
        OURS: {0: 0.52, 1: 0.64},
        FOR_FLOPS: {1: 0.7},
    }
    done = {
        cell.name: run(cell, scores[cell.method][cell.seed], 0.25 if cell.method == FOR_FLOPS else 0.5)
        for cell in cells()
        if cell.group == "main" and cell.net == "ssd" and cell.seed in scores.get(cell.method, {})
    }
    page = session_table.page(cells(), done, {"machine": "any"})
    assert f"- {OURS}: +3.0 ± 1.0 over dense (2)." in page
    assert f"- {FOR_FLOPS}: +10.0 over dense (1)." in page
    assert f"| {FOR_FLOPS} | 0.500 | 0.250 | 70.00 | 70.00 | 1 | 1.0 |" in page
    assert f"Not trained yet: {len(cells()) - 6} of {len(cells())} runs." in page


def test_the_numbers_have_the_last_mask_and_not_every_update(tmp_path: Path) -> None:
    cell = next(cell for cell in cells() if cell.method == OURS)
    done = run(cell, 0.5) | {"updates": [{"kept": {"stem": 9}}, {"kept": {"stem": 4}}]}
    for known in ({cell.name: done}, None):  # and again from its own numbers, as --adopt has it
        known = known or json.loads((tmp_path / "session.json").read_text())["runs"]
        session_table.write(tmp_path, cells(), known, {"machine": "any"})
        found = json.loads((tmp_path / "session.json").read_text())["runs"][cell.name]
        assert found["kept"] == {"stem": 4} and "updates" not in found


def test_every_training_has_a_name_of_its_own() -> None:
    names = [cell.name for cell in cells()]
    assert len(names) == len(set(names))
