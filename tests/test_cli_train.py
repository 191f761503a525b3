"""`effp-fx train`, `eval` and `demo` from end to end: files, resuming, the same mAP wherever it is said."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

import effp_fx
from effp_fx.cli import main
from effp_fx.data import write_scenes

MODEL = "effp:ssd_small?size=64&width=8"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, images=16, val_images=8, test_images=0, size=64, difficulty=0.1, most=2)
    return str(folder)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def said(capsys: Captured) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_session_from_the_command_line_to_the_compact_model(scenes: str, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    targets = ("--target-flops", 0.5, "--target-params", 0.6)
    options = (
        "--epochs",
        5,
        "--batch-size",
        4,
        "--updates",
        5,
        "--start",
        0.05,
        "--ema",
        0.9,
        "--eval-every",
        3,
        "-o",
        out,
    )
    assert run("train", MODEL, "--data", scenes, *targets, *options, "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    classes = len(found["classes"])
    assert found["model"] == f"{MODEL}&num_classes={classes + 1}" and found["steps"] == 20
    assert found["flops_after"] <= 0.5 * found["flops"] and found["params_after"] <= 0.6 * found["params"]
    assert found["map_difference"] <= 1e-6 and found["onnx_error"] < 1e-4 and found["speedup"] > 0
    assert [row["map"] is None for row in found["rows"]] == [True, True, False, True, False]
    assert "epoch   5  step     20" in captured.err and "mask fixed" in captured.err
    for path in found["files"].values():
        assert Path(path).is_file(), path
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 4 and str(out / "small.onnx") in page
    assert (out / "updates.csv").read_text().startswith("step,flops,params,")

    small = effp_fx.load(out / "small.safetensors")
    assert sum(value.numel() for value in small.parameters()) == found["params_after"]
    onnx.checker.check_model(str(out / "small.onnx"))
    assert run("eval", out / "small.safetensors", "--data", scenes, "--json") == 0
    scores = said(capsys)
    assert scores["map"] == pytest.approx(found["scores"]["compact"]["map"], abs=1e-9)
    assert scores["images"] == 8 and len(scores["per_class"]) == classes


def test_a_dense_run_is_resumed_and_judged(scenes: str, tmp_path: Path, capsys: Captured) -> None:
    options = ("train", MODEL, "--data", scenes, "--target-flops", 1, "--epochs", 1, "-o", tmp_path)
    assert run(*options, "--json") == 0
    found = said(capsys)
    assert found["flops"] == found["flops_after"] and list(found["scores"]) == ["dense"] and not found["updates"]
    assert run(*options) == 1
    assert "the folder holds a run already" in capsys.readouterr().err
    assert run(*options, "--resume") == 0
    assert "go on after step 1 of 1" in capsys.readouterr().err
    for weights in ("dense.safetensors", "last.safetensors"):
        assert run("eval", MODEL, "--data", scenes, "--weights", tmp_path / weights, "--json") == 0
        assert said(capsys)["map"] == pytest.approx(found["scores"]["dense"]["map"], abs=1e-9)
    assert run("eval", MODEL, "--data", scenes, "--weights", tmp_path / "dense.safetensors") == 0
    table = capsys.readouterr().out
    assert "VOC 2007, 11 points" in table and "striped_disc" in table


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("eval", MODEL, "--data", "{scenes}"), 1, "the model has no weights to judge"),
        (("eval", "small.safetensors", "--data", "{scenes}", "--weights", "x"), 2, "brings its weights with it"),
        (("train", MODEL, "--data", "{scenes}", "--optimizer", "lion"), 1, "no training with this optimizer"),
        (("train", MODEL, "--data", "{scenes}", "--on-error", "cry"), 2, "'cry' is not one of stop, skip"),
        (("train", MODEL, "--data", "{scenes}", "--dense", "--target-params", 0.5), 1, "a dense run has no target"),
        (("train", MODEL, "--data", "{scenes}", "--device", "cuda:77"), 1, "this device is not there"),
        (("train", MODEL, "--data", "nowhere"), 1, "there is no such data set"),
        (("train", MODEL, "--data", "{scenes}", "--val-split", "dev"), 1, "there is no split 'dev'"),
        (("train", MODEL, "--data", "{scenes}", "--epochs", 1), 1, "total_steps is too small for 1 update from"),
        (("train", "torchvision:resnet18", "--data", "{scenes}", "--dense", "--epochs", 1), 1, "takes no targets"),
    ],
)
def test_what_cannot_be_is_said_in_a_few_lines(
    arguments: tuple[object, ...], status: int, message: str, scenes: str, tmp_path: Path, capsys: Captured
) -> None:
    given = [str(argument).format(scenes=scenes) for argument in arguments]
    more = ["-o", str(tmp_path / "out")] if given[0] == "train" else []
    assert run(*given, *more) == status
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.slow
def test_the_demo_trains_and_tells_all(tmp_path: Path, capsys: Captured) -> None:
    run("demo", "--images", 8, "--epochs", 45, "--model", MODEL.replace("64", "96"), "-o", tmp_path)
    shown = capsys.readouterr().out
    for words in ("FLOPs", "parameters", "masked", "mAP equal to", "ONNX Runtime against PyTorch", "times as fast"):
        assert words in shown, words
    assert str(tmp_path / "small.safetensors") in shown and (tmp_path / "scenes-8-0" / "Annotations").is_dir()


def test_a_run_that_does_not_begin_leaves_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        "import sys; from effp_fx.cli import main; sys.exit(main())",
        "train",
        "effp:ssd_small",
    ]
    ended = subprocess.run([*command, "--data", "nowhere", "-o", str(out)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert not out.exists()
