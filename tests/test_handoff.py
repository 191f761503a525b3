"""The bundle for a board: its files, its manifest, what is refused; run and checked where there is no torch."""

import ast
import hashlib
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import effp_fx
from effp_fx import cli, models
from effp_fx.errors import ExportError
from effp_fx.export.handoff import Preprocess, handoff, manifest, pictures
from tests import bundle

pytestmark = pytest.mark.ultralytics
BOARD = Path(manifest.__file__).parent / "board"


def content(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return data


def seal(folder: Path) -> None:
    """Write the checksums anew, as a forger would."""
    data = content(folder)
    for name, entry in data["files"].items():
        entry["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(data))


# --- what is written ---


def test_the_manifest_follows_its_schema_and_tells_the_truth() -> None:
    report = bundle.written()
    data = content(report.folder)
    schema = json.loads((report.folder / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**data, "format_version": 2})
    assert set(data["files"]) | {"manifest.json"} == set(report.files)
    for name, entry in data["files"].items():
        assert entry["sha256"] == hashlib.sha256((report.folder / name).read_bytes()).hexdigest()
    model = bundle.yolo()
    assert data["model"]["params"] == sum(parameter.numel() for parameter in model.parameters())
    assert data["model"]["opset"] == 17 and data["model"]["part"] == "decoded" and data["plan"] is None
    assert data["inputs"][0]["shape"] == [1, 3, 160, 160] and data["inputs"][0]["preprocess"]["resize"] == "letterbox"
    assert [item["meaning"] for item in data["outputs"]] == ["boxes", "scores"]
    assert data["classes"][0] == {"label": 0, "name": "person"} or data["classes"][0]["name"] == "0"
    assert data["check"]["verdict"] == "supported" and data["target"]["tensorrt"] == "8.5.2"


def test_flops_are_those_of_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = bundle.yolo().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(bundle.IMAGES)
    found = content(bundle.written().folder)["model"]["flops"]
    assert found == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first = bundle.written()
    second = handoff(bundle.yolo(), tmp_path / "board", bundle.IMAGES, tar=True)
    assert first.archive is not None and second.archive is not None
    for name in first.files:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name
    assert first.archive.read_bytes() == second.archive.read_bytes()
    with tarfile.open(first.archive) as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries] == [f"board/{name}" for name in first.files]
    assert {entry.mtime for entry in entries} == {0} and {entry.uname for entry in entries} == {""}
    assert [oct(entry.mode) for entry in entries if entry.name.endswith(".sh")] == ["0o755"]


def test_the_readme_has_the_numbers_of_this_model() -> None:
    report = bundle.written()
    text = (report.folder / "README.md").read_text()
    data = content(report.folder)
    assert "$" not in re.sub(r"`[^`]*`|    .*", "", text)
    assert "Jetson Xavier NX" in text and "TensorRT 8.5.2" in text and "TensorRT was not run" in text
    assert f"{data['model']['nodes']} nodes" in text and "160 x 160" in text
    assert f"{data['model']['params'] / 1e6:.2f} M parameters" in text
    assert "trtexec --onnx=model.onnx --fp16 --memPoolSize=workspace:2048" in text


# --- shell and Python on the board ---


def test_every_shell_script_is_sound() -> None:
    scripts = sorted(bundle.written().folder.rglob("*.sh"))
    assert [path.name for path in scripts] == ["build.sh"]
    for path in scripts:
        subprocess.run(["bash", "-n", str(path)], check=True)
        checker = Path(sys.executable).parent / "shellcheck"
        done = subprocess.run([str(checker), str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert path.stat().st_mode & 0o111


@pytest.mark.parametrize(
    "options,expected",
    [
        ([], ["--fp16", "--useCudaGraph", "--memPoolSize=workspace:2048", "--saveEngine=engines/model.fp16.engine"]),
        (["--fp32"], ["--saveEngine=engines/model.fp32.engine"]),
        (["--int8"], ["--int8", "--fp16", "--calib=calibration/model.cache"]),
        (["--dla", "1"], ["--useDLACore=1", "--allowGPUFallback", "--saveEngine=engines/model.fp16.dla1.engine"]),
        (["--profile"], ["--dumpProfile", "--separateProfileRun", "--profilingVerbosity=detailed"]),
        (["--workspace", "512"], ["--memPoolSize=workspace:512"]),
    ],
)
def test_the_line_that_build_runs(options: list[str], expected: list[str]) -> None:
    command = ["bash", str(bundle.written().folder / "build.sh"), "--dry-run", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert words[0].endswith("trtexec") and words[1] == "--onnx=model.onnx"
    assert [word for word in expected if word not in words] == []
    assert ("--fp16" in words) is (options != ["--fp32"])


@pytest.mark.parametrize(
    "options,text",
    [
        (["--dla", "2"], "the last is 1"),
        (["--dla", "0", "--fp32"], "a DLA computes in FP16 or INT8"),
        (["--fast"], "unknown option --fast"),
        (["--int8"], "first: python3 calibration/calibrate.py"),
        ([], "trtexec is not found"),
    ],
)
def test_build_says_what_is_in_the_way(options: list[str], text: str) -> None:
    command = ["bash", str(bundle.written().folder / "build.sh"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and text in done.stderr and done.stderr.startswith("build.sh: ")


@pytest.mark.parametrize("path", sorted(BOARD.rglob("*.py")), ids=lambda path: path.name)
def test_a_script_of_the_board_runs_on_python_3_8_and_imports_nothing_of_ours(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    roots = {name.split(".")[0] for name in names}
    allowed = set(sys.stdlib_module_names) | {"numpy", "runtime", "onnxruntime", "tensorrt", "cv2", "PIL"}
    assert roots <= allowed


@pytest.mark.slow
def test_the_scripts_are_typed(tmp_path: Path) -> None:
    folder = bundle.written().folder
    scripts = ["run.py", "check.py", "calibration/calibrate.py"]
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "--allow-untyped-calls"]
    cache = ["--cache-dir", str(tmp_path), "--config-file", ""]
    done = subprocess.run([*command, *cache, *scripts], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- where there is no torch ---


@pytest.mark.slow
def test_check_and_run_work_with_numpy_and_onnxruntime_alone(tmp_path: Path) -> None:
    folder = bundle.copied(tmp_path)
    none = subprocess.run([bundle.python(), "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in none.stderr
    said = bundle.run(folder, "check.py")
    assert said.count("pass  ") >= 7 and "FAIL" not in said and "against pytorch" in said
    assert f"{len(bundle.written().files) - 1} files are those that were packed" in said
    said = bundle.run(folder, "run.py", "--score", "0.05", "--repeat", "2", "--max", "8")
    assert "network" in said and "p99" in said and "drawn: drawn/" in said
    for number in range(2):
        drawn = np.asarray(Image.open(folder / "drawn" / f"sample_{number}.png"))
        with np.load(folder / "samples.npz") as packed:
            before = packed["pictures"][number]
        assert drawn.shape == before.shape
        share = float((drawn != before).any(-1).mean())
        assert 0.001 < share < 0.9, "frames are drawn, and the picture is still to be seen"


@pytest.mark.slow
def test_run_takes_files_and_folders_and_prints_json(tmp_path: Path) -> None:
    folder = bundle.copied(tmp_path)
    (tmp_path / "more").mkdir()
    for name, kind in (("a.jpg", "JPEG"), ("more/b.png", "PNG"), ("more/c.ppm", "PPM")):
        Image.fromarray(pictures.drawn(3, 120, 200)).save(tmp_path / name, kind)
    said = bundle.run(folder, "run.py", "../a.jpg", "../more", "--json", "--score", "0.01", "--output", "out")
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["picture"] for line in lines[:-1]] == ["a", "b", "c"]
    assert lines[1]["detections"] == lines[2]["detections"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "b.png", "c.png"]
    assert lines[-1]["runtime"] == "onnxruntime" and set(lines[-1]["times"]) == {"prepare", "network", "decode", "all"}
    for found in lines[0]["detections"]:
        left, top, right, bottom = found["box"]
        assert 0 <= left <= right <= 200 and 0 <= top <= bottom <= 120
    assert "is not there" in bundle.run(folder, "run.py", "absent.jpg", expect=1)
    assert "needs OpenCV" in bundle.run(folder, "run.py", "film.mp4", expect=1)
    assert "tensorrt is not installed" in bundle.run(folder, "run.py", "--runtime", "tensorrt", expect=1)


@pytest.mark.slow
def test_an_altered_or_missing_file_is_named_and_refused(tmp_path: Path) -> None:
    folder = bundle.copied(tmp_path)
    with open(folder / "model.onnx", "ab") as file:
        file.write(b"\0")
    (folder / "calibration" / "calibrate.py").unlink()
    for script in ("check.py", "run.py"):
        said = bundle.run(folder, script, expect=1)
        assert said.startswith(f"{script}: not the folder that was packed")
        assert "model.onnx was altered" in said and "calibration/calibrate.py is missing" in said


@pytest.mark.slow
def test_check_fails_where_outputs_differ(tmp_path: Path) -> None:
    folder = bundle.copied(tmp_path)
    with np.load(folder / "samples.npz") as packed:
        arrays = {name: packed[name] for name in packed.files}
    arrays["pytorch/boxes"] = arrays["pytorch/boxes"] + np.float32(40.0)
    arrays["pictures"][0, :60] = 0
    np.savez(folder / "samples.npz", **arrays)
    seal(folder)
    rows = json.loads(bundle.run(folder, "check.py", "--json", expect=1))["rows"]
    failed = {(row["what"].split(" (")[0], row["against"]) for row in rows if not row["passed"]}
    assert ("preparation of pictures", "the packed inputs") in failed and ("boxes", "pytorch") in failed
    assert ("detections", "pytorch") in failed and ("scores", "pytorch") not in failed
    said = bundle.run(folder, "check.py", "--precision", "fp16", expect=1)
    assert "FAIL  boxes" in said and "of 2e-02 allowed, against pytorch" in said


# --- what is refused ---


class Square(nn.Module):
    """Mean over height and width, an op that TensorRT 8 gets wrong from opset 18 on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def test_what_the_board_would_get_wrong_is_not_handed_over(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="would compute something else") as caught:
        handoff(Square(), tmp_path / "out", torch.rand(1, 3, 16, 16), opset=18)
    assert "reduces over ALL dimensions" in str(caught.value) and "opset 17" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_network_without_boxes_is_handed_over_as_it_is(tmp_path: Path) -> None:
    how = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), color="BGR")
    own = np.full((20, 30, 3), 200, dtype=np.uint8)
    report = handoff(
        Square(), tmp_path, torch.rand(1, 3, 16, 16), preprocess=how, samples=[own], calibration=[own] * 3, tar=False
    )
    data = content(report.folder)
    assert data["decoding"] is None and data["classes"] == [] and data["calibration"] == {"pictures": 3}
    assert np.load(tmp_path / "calibration" / "images.npy").shape == (3, 16, 16, 3)
    with np.load(tmp_path / "samples.npz") as packed:
        name = data["inputs"][0]["name"]
        np.testing.assert_allclose(packed[f"input/{name}"], (200 / 255 - 0.5) / 0.5, rtol=1e-5)
    again = handoff(Square(), tmp_path, torch.rand(1, 3, 16, 16), target="tensorrt-10")
    assert content(again.folder)["target"]["name"] == "tensorrt-10" and again.notes


@pytest.mark.parametrize(
    "options,text",
    [
        ({"target": "toaster"}, "this target is not known"),
        ({"samples": []}, "no pictures were given"),
        ({"samples": [np.zeros((4, 4), np.uint8)]}, "this is no picture"),
        ({"samples": "nowhere"}, "the pictures are not there"),
    ],
)
def test_wrong_requests(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ExportError, match=text):
        handoff(Square(), tmp_path / "out", torch.rand(1, 3, 16, 16), **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ExportError, match="holds other things"):
        effp_fx.handoff(Square(), tmp_path, torch.rand(1, 3, 16, 16))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_classes_must_fit_the_scores() -> None:
    decoding: Any = type("D", (), {"classes": (1, 2, 3)})()
    named = manifest.class_names(Square(), decoding, {1: "a", 2: "b", 3: "c"})
    assert named[2] == {"label": 3, "name": "c"}
    with pytest.raises(ExportError, match="do not fit the scores"):
        manifest.class_names(Square(), decoding, ["a", "b"])
    with pytest.raises(ExportError, match="some classes have no name"):
        manifest.class_names(Square(), decoding, {1: "a"})


# --- the commands ---


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["export", "effp:residual", "-o", "board", "--target", "jetson-orin", "--tar"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["archive"] == str(Path("board.tar.gz").resolve()) and "run.py" in found["files"]
    assert found["check"]["target"] == "jetson-orin" and Path("board/build.sh").is_file()
    assert cli.main(["latency", "board", "--against", "board/model.onnx", "--rounds", "6", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "ONNX Runtime, 1 threads" in out and "p99" in out and "per second" in out
    assert cli.main(["latency", "board", "--rounds", "5", "--json"]) == 0
    (network,) = json.loads(capsys.readouterr().out)["networks"]
    assert network["p50_seconds"] <= network["p90_seconds"] <= network["p99_seconds"] and network["ratio"] == 1
    Path("board/run.py").write_text("print()")
    assert cli.main(["latency", "board"]) == 1
    assert "run.py was altered" in capsys.readouterr().err
    assert cli.main(["latency", "absent"]) == 2
    assert cli.main(["export", "effp:residual", "--tar"]) == 2


def test_models_carry_their_own_preparation() -> None:
    from effp_fx.export.handoff.preprocessing import of_family

    ssd = models.build("torchvision:ssdlite320_mobilenet_v3_large").model
    assert of_family(ssd) == (Preprocess(resize="stretch", align="corner"), None)
    assert of_family(bundle.yolo())[0].resize == "letterbox"
    how, note = of_family(Square())
    assert how == Preprocess() and note is not None and "was not said" in note
    with pytest.raises(ExportError, match="resize of the preprocessing"):
        Preprocess(resize="crop")
