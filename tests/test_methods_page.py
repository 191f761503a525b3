"""The bench of all methods: its grids, and the page that it writes from what is done."""

import json
from dataclasses import replace
from pathlib import Path

from benchmarks import methods, methods_table
from effp_fx.bench import accuracy
from effp_fx.bench.grid import JOURNAL, note, opened
from effp_fx.methods import METHODS
from effp_fx.report.grid_report import GridReport, GridRun, grid_json, grid_pictures


def done(method: str, target: float | None, seed: int, score: float, seconds: float) -> GridRun:
    share = target or 1.0
    return GridRun(method, target, seed, share, share, score, 2 * score, seconds, seconds, 3.0 if seed == 0 else None)


FOUND = GridReport(
    "net",
    "scenes",
    20,
    (
        done("dense", None, 0, 0.35, 100.0),
        done("tcfp", 0.5, 0, 0.30, 100.0),
        done("tcfp", 0.5, 1, 0.32, 110.0),
        done("effp", 0.5, 0, 0.33, 100.0),
        done("uniform", 0.5, 0, 0.34, 60.0),
        GridRun("torch_pruning", 0.5, 0, failed="cannot trace it"),
    ),
    missing=85,
)
OTHER = GridReport("other net", "scenes", 8, (done("effp", 0.5, 0, 0.40, 50.0),), missing=44)
SHORTER = GridReport("net", "scenes", 12, (done("effp", 0.5, 0, 0.32, 60.0),), missing=5)
LONGER = GridReport("net", "scenes", 34, (done("tcfp", 0.5, 0, 0.34, 200.0),), missing=2)
ALL = {"ssd": FOUND, "yolo": OTHER, "shorter": SHORTER, "longer": LONGER}


def test_the_grids_have_every_method_three_times(tmp_path: Path) -> None:
    ssd, yolo, short, long = (methods.grid(tmp_path, name) for name in ("ssd", "yolo", "shorter", "longer"))
    assert len(ssd.cells) == 3 * (1 + 2 * (len(METHODS) - 1)) and len(yolo.cells) == 3 * len(METHODS)
    assert {cell.method for cell in short.cells} == {"effp"} and {cell.method for cell in long.cells} == {"tcfp"}
    epochs = ssd.task.recipe.epochs
    assert short.task.recipe.epochs == round(0.58 * epochs) and round(0.58 * long.task.recipe.epochs) == epochs
    assert ssd.task.recipe.lr == short.task.recipe.lr and len({bench.task.out for bench in (ssd, short, long)}) == 3
    assert set(methods.PARTS) == {"ssd", "yolo", *methods_table.LENGTHS}


def test_the_page_says_who_is_ahead_and_sets_the_claims_beside_what_was_measured(tmp_path: Path) -> None:
    methods_table.write(tmp_path, ALL, {"images": 8}, {"cores": "2"})
    page = (tmp_path / "methods.md").read_text()
    assert (
        "Not trained yet, or failed: 136 runs." in page
        and "- ssd, torch_pruning at 0.5, seed 0: cannot trace it" in page
    )
    assert "| tcfp | 0.500 | 0.500 | 62.00 ± 2.83 | 31.00 ± 1.41 | 2 | 1.8 | 3.00 |" in page
    assert "`net` at 0.5: ahead of EFFP, in points of mAP over the seeds that both have: uniform (+1.0)." in page
    assert "| here | 20 against 20 | +3.00 | +0 % |" in page and "| here | 12 against 20 | +2.00 | -40 % |" in page
    assert "| here | 20 against 34 | -1.00 | -50 % |" in page and page.count("| here |") == 3
    assert "## `other net`, 8 epochs" in page and "| effp | 0.500 | 0.500 | 80.00 | 40.00 | 1 | 0.8 | 3.00 |" in page
    short = methods_table.in_short(ALL)
    assert "| **effp** | 33.00 (1) | 40.00 (1) |" in short and "| uniform | 34.00 (1) | - |" in short
    assert "- `other net` at 0.5: EFFP is first." in short
    assert "| in the paper | - | +0.78 % | -42 % |" in page
    assert (tmp_path / "methods_map_over_time.svg").exists()
    assert json.loads((tmp_path / "methods.json").read_text())["parts"].keys() == ALL.keys()


def test_trainings_of_another_machine_come_without_their_times(tmp_path: Path) -> None:
    bench = methods.grid(tmp_path, "ssd")
    known = grid_json(FOUND)["runs"]
    opened(bench)
    note(bench.task.out / JOURNAL, {"cell": "effp-0.5-0", "status": "ok", "map": 0.5})
    methods.adopt(bench, known)
    done = opened(bench)
    assert set(done) == {"dense-0", "tcfp-0.5-0", "tcfp-0.5-1", "effp-0.5-0", "uniform-0.5-0"}
    assert done["effp-0.5-0"]["map"] == 0.5 and done["tcfp-0.5-1"]["map"] == 0.32
    adopted = replace(FOUND, runs=tuple(accuracy.written(bench, {"tcfp-0.5-1": done["tcfp-0.5-1"]}, {}).runs))
    assert "| tcfp | 0.500 | 0.500 | 64.00 | 32.00 | 1 | - | - |" in methods_table.page({"ssd": adopted}, {}, {})
    assert "NaN" not in json.dumps(grid_json(adopted)) and "svg" in grid_pictures(adopted)["map_over_time"]


def test_a_page_of_nothing_is_written_too() -> None:
    empty = GridReport("net", "scenes", 20, (), missing=90)
    assert "Not trained yet, or failed: 90 runs." in methods_table.page({"ssd": empty}, {}, {})
