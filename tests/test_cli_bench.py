"""`effp-fx bench`: the accuracy grid from end to end and after a cut, time against FLOPs, compile time."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import effp_fx
from effp_fx.bench import accuracy
from effp_fx.bench.grid import Cell, Grid, finished
from effp_fx.cli import main
from effp_fx.data import write_scenes
from effp_fx.errors import NameNotFoundError, TrainingError
from effp_fx.report.grid_report import GridReport, GridRun, grid_json, grid_pictures, grid_rows, grid_table
from effp_fx.report.scatter_chart import Point, scatter_chart
from effp_fx.report.terminal import text
from effp_fx.train import Recipe, Task

MODEL = "effp:ssd_small?size=64&width=8"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return str(write_scenes(folder, images=8, val_images=4, test_images=0, size=64, difficulty=0.1, most=2))


def run(*arguments: object, expect: int = 0) -> None:
    assert main([str(argument) for argument in arguments]) == expect


@pytest.mark.slow
def test_a_bench_that_is_cut_off_goes_on_where_it_was(
    scenes: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bench"
    options = ["--epochs", 2, "--batch-size", 4, "--seeds", 1, "--augment", "flip", "-o", out]
    command = ["bench", "accuracy", MODEL, "--data", scenes, "--methods", "dense,l1,chex", *options]
    set_epoch, begun = accuracy.CourseTrainer.fit.__globals__["set_epoch"], []

    def cut(batches: Any, epoch: int, *rest: Any) -> None:
        begun.append(epoch)
        if len(begun) == 4:  # the second session of l1
            raise KeyboardInterrupt
        set_epoch(batches, epoch, *rest)

    monkeypatch.setitem(accuracy.CourseTrainer.fit.__globals__, "set_epoch", cut)
    run(*command, expect=130)
    assert begun == [0, 1, 0, 1] and list(finished(out / "journal.jsonl")) == ["dense-0"]
    capsys.readouterr()
    run(*command, "--json")
    captured = capsys.readouterr()
    assert begun[4:] == [1, 0, 1]  # what is left of l1, and chex
    assert "chex-0.5-0, training 3 of 3, epoch 2 of 2; 6 of 6 epochs" in captured.err
    found = json.loads(captured.out)
    assert found["missing"] == 0 and {row["method"] for row in found["rows"]} == {"dense", "l1", "chex"}
    for row in found["rows"]:
        share = 1.0 if row["method"] == "dense" else 0.5
        assert row["flops"] <= share and row["params"] <= share and row["seconds"] > 0 and row["milliseconds"] > 0
    small = effp_fx.load(out / "cells" / "l1-0.5-0" / "small.safetensors")
    assert len(small.eval()([torch.rand(3, 64, 64)])) == 1
    assert not list(out.glob("cells/*/fit*.safetensors"))
    for path in found["files"].values():
        assert Path(path).is_file()
    run(*command, "--lr", 0.5, expect=1)
    assert "the folder holds a bench with another recipe" in capsys.readouterr().err
    run(*command)
    assert len(begun) == 7 and "mAP@.5" in capsys.readouterr().out


def task(tmp_path: Path) -> Task:
    return Task(MODEL, "scenes", tmp_path, Recipe(epochs=4))


def test_a_grid_has_the_dense_network_once_a_seed(tmp_path: Path) -> None:
    grid = Grid(task(tmp_path), ("dense", "effp"), (0.5, 0.3), seeds=2)
    assert [cell.name for cell in grid.cells] == [
        *("dense-0", "effp-0.5-0", "effp-0.3-0"),
        *("dense-1", "effp-0.5-1", "effp-0.3-1"),
    ]
    budget = grid.budget(Cell("effp", 0.3, 1))
    assert (budget.flops, budget.params, budget.epochs, budget.seed) == (0.3, 0.3, 4, 1)
    assert Grid(task(tmp_path), ("effp",), target_params=0.7).budget(Cell("effp", 0.5, 0)).params == 0.7


def test_a_grid_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(NameNotFoundError, match="no method is named 'magic'"):
        Grid(task(tmp_path), ("magic",))
    for options in ({"methods": ()}, {"methods": ("effp", "effp")}, {"targets": ()}, {"seeds": 0}):
        with pytest.raises(TrainingError, match="there is no bench with this"):
            Grid(task(tmp_path), **{"methods": ("effp",), **options})  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="this moving average"):
        Grid(Task(MODEL, "scenes", tmp_path, Recipe(ema=0.9)), ("effp",))


def test_a_training_that_fails_is_noted_and_stops_nothing(scenes: str, tmp_path: Path) -> None:
    grid = Grid(Task("torchvision:resnet18", scenes, tmp_path, Recipe(epochs=1)), ("dense",), seeds=1)
    entry = accuracy.attempt(grid, grid.cells[0])
    assert entry["status"] == "failed" and "the model takes no targets in training" in entry["message"]


RUNS = (
    GridRun("tcfp", 0.5, 0, 0.5, 0.5, 0.30, 0.5, 60.0, 50.0, 3.0),
    GridRun("tcfp", 0.5, 1, 0.49, 0.5, 0.32, 0.5, 70.0, 50.0),
    GridRun("effp", 0.5, 0, 0.5, 0.5, 0.33, 0.5, 40.0, 30.0, 2.0),
    GridRun("torch_pruning", 0.5, 0, failed="Torch-Pruning cannot prune this model"),
    GridRun("dense", None, 0, 1.0, 1.0, 0.35, 0.6, 50.0, 40.0),
)


def test_the_report_has_means_deviations_and_what_failed() -> None:
    found = GridReport("m", "d", 4, RUNS, missing=1)
    assert [(row.target, row.method) for row in grid_rows(RUNS)] == [(None, "dense"), (0.5, "effp"), (0.5, "tcfp")]
    shown = text(grid_table(found))
    assert "31.00 ± 1.41" in shown and "seed 0: Torch-Pruning cannot prune this model" in shown
    written = json.loads(json.dumps(grid_json(found), allow_nan=False))
    assert written["rows"][2]["map"] == pytest.approx(0.31) and written["runs"][3]["map"] is None
    for picture in grid_pictures(found).values():
        names = [
            element.text or "" for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}title")
        ]
        assert [name.split(":")[0] for name in names] == ["dense", "effp 0.5", "tcfp 0.5"]


def test_a_scatter_leaves_out_what_is_not_finite_and_bears_nothing() -> None:
    assert "a &lt; b" in scatter_chart("a < b", [Point("x", float("nan"), 1.0)], across="x", up="y")
    one = scatter_chart("t", [Point("p", 2.0, 2.0), Point("q", 2.0, 2.0)], across="x", up="y")
    heights = [float(part.split('"')[0]) for part in one.split('y="')[1:] if ">p<" in part or ">q<" in part]
    assert len(heights) == 2 and abs(heights[0] - heights[1]) >= 12


def test_time_is_set_against_flops(capsys: Captured) -> None:
    options = ["--target-flops", 0.5, "--round-to", 1, "--round-to", 8, "--rounds", 2, "--layers", "--threads", 1]
    run("bench", "latency", "effp:chain?width=32", "--randomise", *options, "--json")
    (found,) = json.loads(capsys.readouterr().out)
    dense, *rest = found["networks"]
    assert found["runtime"] == "ONNX Runtime, 1 threads" and [row["name"] for row in rest] == [
        "round_to=1",
        "round_to=8",
    ]
    for row in rest:
        assert row["flops_kept"] <= 0.5 and row["ratio"] == pytest.approx(row["time_kept"] / row["flops_kept"])
        assert row["time_kept"] == pytest.approx(row["median_seconds"] / dense["median_seconds"])
    slowest = found["layers"][0]
    assert slowest["op"] and slowest["seconds"]["dense"] > 0
    run("bench", "effp:chain?width=16", "--randomise", "--target-flops", 0.5, "--round-to", 4, "--rounds", 1)
    assert "time over FLOPs" in capsys.readouterr().out


def test_a_folder_stands_for_its_onnx_files(tmp_path: Path, capsys: Captured) -> None:
    for name in ("small", "dense"):
        run("export", "effp:chain", "--randomise", "-o", tmp_path / f"{name}.onnx")
    capsys.readouterr()
    run("bench", "latency", tmp_path, "--rounds", 1, "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert [Path(row["name"]).name for row in found["networks"]] == ["dense.onnx", "small.onnx"]
    for arguments, said in (
        (["effp:chain", "effp:residual"], "one MODEL at a time"),
        (["--target-flops", 0.5, "--onnx", tmp_path / "small.onnx"], "needs its dense MODEL"),
        ([tmp_path.parent], "holds no ONNX file"),
    ):
        run("bench", "latency", *arguments, expect=2)
        assert said in capsys.readouterr().err


def test_both_compilers_are_timed_and_a_failure_is_said(capsys: Captured) -> None:
    run("bench", "compile", "effp:chain", "--size", 12, "--repeats", 1, "--json")
    chain, residual = json.loads(capsys.readouterr().out)
    assert residual["model"] == "residual, 12" and residual["convolutions"] == 12
    for row in (chain, residual):
        assert row["seconds"] > 0 and (row["torch_pruning_seconds"] or 0) > 0
        assert row["seconds"] == pytest.approx(
            sum(row["ours"][0][s] for s in ("capture", "analysis", "trial", "plan", "lowering"))
        )
    run("bench", "compile", "--size", 13, expect=1)
    assert "no residual network of this size" in capsys.readouterr().err
