"""The page of exports says what the rows say, and is the one that the stored rows give."""

import json
from pathlib import Path

import pytest

from benchmarks import export_page

ROOT = Path(__file__).parents[1]
VERDICT = {"verdict": "supported", "counts": {"supported": 3}, "dla": {"FP16": 0.5}}
ROW = {
    "model": "Net",
    "spec": "effp:net",
    "kind": "dense",
    "side": 128,
    "part": "full",
    "nodes_before": 9,
    "nodes": 5,
    "bytes": 2_500_000,
    "relative": 2e-5,
    "noise": 1e-6,
    "detections": [300, 2],
    "notes": ["two differ"],
    "tensorrt": {name: VERDICT for name in ("jetson-xavier-nx", "jetson-orin", "tensorrt-10")},
}
REFUSED = {key: ROW[key] for key in ("model", "spec", "side")} | {
    "kind": "pruned",
    "part": "decoded",
    "refused": "two stages",
}


def test_a_row_shows_what_was_measured() -> None:
    page = export_page.page({"date": "2026-01-01"}, [ROW, REFUSED])
    assert "| dense | full | 9 → 5 | 2.5 | 2.0e-05 | 1.0e-06 | 300, 2 differ | supported |" in page
    assert "| full | 1 | 1 | 2.0e-05 | 300 | 2 |" in page
    assert "| pruned | decoded | refused |" in page
    assert "- decoded: two stages" in page and "- dense, full: two differ" in page
    assert "Not written: 1" in page
    assert "`effp:net`, 128 x 128 pixels" in page


def test_files_of_detections_stand_beside_their_model() -> None:
    judged = {"images": 8, "detections": 90, "differ": 1, "map_model": 0.5, "map_file": 0.498, "truth": "own"}
    equal = judged | {"differ": 0, "map_file": 0.50005, "truth": "drawn"}
    page = export_page.page({}, [ROW | {"scenes": judged}, ROW | {"kind": "pruned", "scenes": equal}])
    assert "| Net | dense | 8 | own | 90 | 1 | 0.50000 | 0.49800 | 2e-03 |" in page
    assert "The same mAP within 1e-4: 1 of 2. Detections that differ: 1 of 180." in page
    assert "On drawn scenes" not in export_page.page({}, [ROW])


def test_an_error_above_the_bound_is_counted() -> None:
    assert "| full | 1 | 0 | 1.0e-03 | 300 | 2 |" in export_page.summary([ROW | {"relative": 1e-3}])


def test_the_page_in_the_repository_is_that_of_its_rows() -> None:
    stored = ROOT / "docs" / "results" / "export.json"
    if not stored.is_file():
        pytest.skip("nothing was measured yet")
    kept = json.loads(stored.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "results" / "export.md").read_text(encoding="utf-8")
    assert page == export_page.page(kept["facts"], kept["rows"])
    assert all(row["opset"] == 17 for row in kept["rows"] if "refused" not in row)
