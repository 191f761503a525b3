"""docs/examples/ run as their reader runs them, on drawn images of 64 pixels, and stay under 60 lines each."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import effp_fx
from effp_fx import data, models

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")  # what their tools warn of is their reader's to see
SHARES = re.compile(r"([\d.]+)% of the (FLOPs|parameters)")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.write_scenes(tmp_path_factory.mktemp("data") / "scenes", images=8, size=64)


@pytest.fixture(scope="module")
def folders(scenes: Path) -> Path:
    """Two classes of images, for a classifier."""
    pictures = sorted(scenes.rglob("*.jpg"))
    for index, picture in enumerate(pictures[:8]):
        place = scenes.parent / "classes" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place)
    return scenes.parent / "classes"


def shares(text: str) -> dict[str, float]:
    """What the last line says is left of FLOPs and parameters."""
    found = {kind: float(value) / 100 for value, kind in SHARES.findall(text)}
    assert found, text
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """`run("yolo", "--epochs", 2)`: what the script says is left; it runs in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(name: str, *arguments: Any) -> dict[str, float]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return shares(capsys.readouterr().out)

    return command


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_read_in_one_look(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_every_example_is_run() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [path.stem for path in EXAMPLES.glob("*.py") if f'"{path.stem}"' not in text]


def test_ssd_from_scratch(run: Any, scenes: Path) -> None:
    left = run("ssd_from_scratch", "--data", scenes, "--epochs", 15, "--batch", 2, "--tiny")
    assert left["FLOPs"] <= 0.5 and left["parameters"] <= 0.5


def test_odd_detector(run: Any, tmp_path: Path) -> None:
    assert run("odd_detector", "--steps", 60)["FLOPs"] <= 0.5
    odd = runpy.run_path(str(EXAMPLES / "odd_detector.py"))["Odd"]
    small = effp_fx.load(tmp_path / "small.safetensors", odd()).eval()
    found = small({"images": [torch.rand(3, 64, 64)]})
    assert [tuple(box.shape) for box in found["boxes"]] == [(1, 4, 16, 16), (1, 4, 8, 8)]


@pytest.mark.timm
def test_timm_classifier(run: Any, folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    left = run(
        "timm_classifier", "--data", folders, "--model", "test_resnet", "--size", 64, "--batch", 4, "--epochs", 30
    )
    assert left["FLOPs"] <= 0.5
    dense = models.build("timm:test_resnet?num_classes=2").model
    small = effp_fx.load(tmp_path / "small.safetensors", dense)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())


@pytest.mark.long
@pytest.mark.ultralytics
def test_yolo(run: Any, scenes: Path) -> None:
    pytest.importorskip("ultralytics")
    assert run("yolo", "--data", scenes, "--epochs", 15, "--batch", 2, "--size", 64)["FLOPs"] <= 0.5


@pytest.mark.long
@pytest.mark.transformers
def test_detr_backbone(run: Any, scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    options = ["--epochs", 15, "--batch", 2, "--size", 64, "--width", 32]
    assert run("detr_backbone", "--data", scenes, *options)["FLOPs"] <= 0.6
    notes = effp_fx.store.weights_file.read(tmp_path / "out" / "small.safetensors")[1]
    assert "backbone" in notes["plan"]


@pytest.mark.long
def test_torchvision_reference_resumes(run: Any, scenes: Path, tmp_path: Path) -> None:
    """A second call finds the checkpoint of the last epoch, and goes on from there."""
    arguments = ["--data", scenes, "--batch", 4, "--epochs", 25]
    left = run("torchvision_reference", *arguments)
    assert left["FLOPs"] <= 0.5
    before = (tmp_path / "small.safetensors").read_bytes()
    assert run("torchvision_reference", *arguments) == left
    assert (tmp_path / "small.safetensors").read_bytes() == before


@pytest.mark.lightning
def test_lightning_detector(run: Any, scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    left = run("lightning_detector", "--data", scenes, "--epochs", 15, "--batch", 2, "--size", 64)
    assert left["FLOPs"] <= 0.5 and left["parameters"] <= 0.5
    assert effp_fx.load(tmp_path / "run" / "small.safetensors") is not None  # onto a model that the file names


@pytest.mark.long
@pytest.mark.transformers
def test_accelerate_in_two_processes(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    name = "accelerate_ddp"

    def launched() -> dict[str, float]:
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            "--standalone",
            str(EXAMPLES / f"{name}.py"),
        ]
        options = ["--data", str(scenes), "--epochs", "50", "--batch", "2", "--size", "64", "--accumulate", "2"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run([*launch, *options], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return shares(done.stdout)

    left = launched()
    assert left["FLOPs"] <= 0.5 and left["parameters"] <= 0.5
    small = tmp_path / "run" / "small.safetensors"
    before = effp_fx.store.weights_file.read(small)[1]["plan"]
    for epoch in range(30, 50):
        shutil.rmtree(tmp_path / "run" / f"epoch{epoch:04}")
    assert launched() == left
    # In which order its loaders go on after a resume is Accelerate's affair; the mask was fixed before.
    assert effp_fx.store.weights_file.read(small)[1]["plan"] == before
