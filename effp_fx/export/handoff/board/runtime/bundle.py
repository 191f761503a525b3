"""The folder itself: its manifest, and whether its files are those that were packed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST = "manifest.json"
SAMPLES = "samples.npz"
FORMAT, VERSION = "effp_fx handoff", 1


class Failure(Exception):
    """Something that the person at the board can mend; printed as one line."""


class Bundle:
    """A folder that effp_fx wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _manifest(folder / MANIFEST)

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.folder / str(self.manifest["model"]["file"])

    @property
    def decoding(self) -> dict[str, Any] | None:
        """How boxes and scores are read; None where the outputs are raw heads."""
        found: dict[str, Any] | None = self.manifest["decoding"]
        return found

    @property
    def image_input(self) -> dict[str, Any] | None:
        """The input that takes pictures, with its preprocessing; None where there is none."""
        taken = [item for item in self.manifest["inputs"] if item["preprocess"] is not None]
        return taken[0] if taken else None

    def class_names(self) -> dict[int, str]:
        """Label -> name."""
        return {int(item["label"]): str(item["name"]) for item in self.manifest["classes"]}

    def samples(self) -> dict[str, Any]:
        """The packed arrays: `pictures`, `input/NAME`, `pytorch/NAME`, `onnxruntime/NAME`."""
        with np.load(str(self.folder / SAMPLES), allow_pickle=False) as packed:
            return {name: packed[name] for name in packed.files}

    def verify(self) -> None:
        """Compare every packed file with its SHA-256. Raises Failure naming each that is missing or altered."""
        wrong: list[str] = []
        for name, entry in sorted(self.manifest["files"].items()):
            path = self.folder / name
            if not path.is_file():
                wrong.append(name + " is missing")
            elif sha256(path) != entry["sha256"]:
                wrong.append(name + " was altered (its SHA-256 is another)")
        if wrong:
            raise Failure("not the folder that was packed: " + "; ".join(wrong) + ". Copy it anew.")


def sha256(path: Path) -> str:
    """The checksum of a file, in hex."""
    made = hashlib.sha256()
    with open(str(path), "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            made.update(piece)
    return made.hexdigest()


def here(script: str) -> Path:
    """The bundle that a script lies in, or one folder above it."""
    folder = Path(script).resolve().parent
    return folder if (folder / MANIFEST).exists() else folder.parent


def _manifest(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Failure(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or (data.get("format"), data.get("format_version")) != (FORMAT, VERSION):
        raise Failure(f"{path} is not a manifest of format {FORMAT!r}, version {VERSION}")
    return data


def shape_of(item: dict[str, Any], batch: int = 1) -> tuple[int, ...]:
    """The sizes of an input; one that is free is `batch`."""
    return tuple(size if isinstance(size, int) else batch for size in item["shape"])
