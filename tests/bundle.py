"""A bundle written once for the whole session, and an environment with numpy, ONNX Runtime and Pillow alone."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib import metadata, util
from pathlib import Path

import pytest
import torch
from torch import nn

from effp_fx import models
from effp_fx.export.handoff import HandoffReport, handoff
from effp_fx.models.randomise import randomise

PACKAGES = ("numpy", "onnxruntime", "pillow")
IMAGES = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def yolo() -> nn.Module:
    """YOLOv8n with random weights and batch norms that are not idle, so that errors show."""
    torch.manual_seed(0)
    model: nn.Module = models.build("ultralytics:yolov8n.yaml").model
    randomise(model, 0, example=models.example_for(model))
    return model


@functools.cache
def written() -> HandoffReport:
    """The bundle of that model for a Xavier NX; not to be changed."""
    folder = Path(tempfile.mkdtemp(prefix="effp_fx-tests-")) / "board"
    return handoff(yolo(), folder, IMAGES, tar=True)


def copied(folder: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(written().folder, folder / "board"))


@functools.cache
def python() -> str:
    """The interpreter of a virtual environment that has the packages and what they need, and nothing else."""
    folder = Path(tempfile.mkdtemp(prefix="effp_fx-venv-"))
    venv.create(folder, with_pip=False, symlinks=True)
    found = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", found, "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *PACKAGES], capture_output=True, text=True, timeout=500)
    if done.returncode:  # no index can be reached: the packages of this environment are lent to that one
        (site,) = folder.glob("lib/python*/site-packages")
        _lend(site)
    return found


def _lend(site: Path) -> None:
    for name in ("numpy", "onnxruntime", "PIL", "flatbuffers", "packaging", "google"):
        spec = util.find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec else []
        for place in [*places, *(f"{place}.libs" for place in places)]:
            target = site / Path(place).name
            if os.path.isdir(place) and not target.exists():
                target.symlink_to(place)
    for package in ("pillow", "numpy"):
        libraries = Path(str(metadata.distribution(package).locate_file(f"{package}.libs")))
        if libraries.is_dir() and not (site / libraries.name).exists():
            (site / libraries.name).symlink_to(libraries)


def run(folder: Path, script: str, *arguments: str, expect: int = 0) -> str:
    """Run a script of a bundle in that environment; return what it printed, errors included."""
    clean = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        [python(), script, *arguments], cwd=folder, env=clean, capture_output=True, text=True, timeout=300
    )
    if done.returncode != expect:
        pytest.fail(f"{script} {arguments} gave {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr
