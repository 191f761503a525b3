"""Writes the bundle for a board: the network as ONNX, and all that it takes to build, check and run it there."""

from __future__ import annotations

import io
import os
import shlex
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from effp_fx import atomic_file
from effp_fx.errors import ExportError
from effp_fx.export.handoff import archive, board_files, guide, manifest
from effp_fx.export.handoff.board.runtime import images
from effp_fx.export.handoff.manifest import Classes
from effp_fx.export.handoff.onnx_part import Work
from effp_fx.export.handoff.pictures import Given, Picture, drawn
from effp_fx.export.handoff.pictures import given as pictures_from
from effp_fx.export.handoff.preprocessing import Preprocess, of_family
from effp_fx.export.handoff.samples import image_port, inputs_of, inputs_of_example, packed, references
from effp_fx.export.report import ExportReport, Port
from effp_fx.export.tensorrt import TensorRTReport
from effp_fx.models import Detection

Progress = Callable[[str], None]
Files = dict[str, bytes]

MODEL, MANIFEST = "model.onnx", "manifest.json"
_SAMPLES = 2
_CALIBRATION = 200
"""Pictures packed for INT8 at most: TensorRT's own advice is some hundred."""


@dataclass(frozen=True)
class HandoffReport:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    export: ExportReport
    check: TensorRTReport
    archive: Path | None
    notes: tuple[str, ...]


def handoff(
    model: nn.Module,
    dir: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    target: str = "jetson-xavier-nx",
    part: str = "auto",
    detection: Detection | None = None,
    classes: Classes = None,
    preprocess: Preprocess | None = None,
    samples: Given = None,
    calibration: Given = None,
    opset: int | None = None,
    dynamic_batch: bool = False,
    tar: bool = False,
    progress: Progress = lambda _: None,
) -> HandoffReport:
    """Write a folder from which a board builds, checks and runs a detector with neither PyTorch nor effp_fx.

    The same model gives the same bytes. A folder that holds an earlier bundle is written over, file by file, its
    manifest last; what else lies in it stays.

    Args:
        model: any module that runs, compact or dense; it is left as it was.
        dir: the folder; made if it is not there.
        example_inputs: what `model(...)` takes; None where the family of the model is known.
        target: "jetson-xavier-nx", "jetson-orin" or "tensorrt-10".
        part: "decoded" (boxes and scores, suppression by run.py), "full" (suppression inside), "network" (raw heads);
            "auto": decoded where it is known what boxes and scores are, else network.
        detection: what the model's outputs mean, where no family says it.
        classes: names in the order of the scores' columns, or label -> name.
        preprocess: how a picture becomes the input; None: what the model's family does.
        samples: pictures for samples.npz: a folder, files, or arrays of uint8 (height, width, 3), all of one size;
            None: drawn from a seed.
        calibration: pictures for INT8, some hundred; None: calibrate.py asks for them on the board.
        opset: None: the target's own, or 16 where that holds an op that the target lacks.
        dynamic_batch: leave the batch free; build.sh then builds for 1 to 8 pictures at once.
        tar: write dir.tar.gz beside it.
        progress: called with a line before each long step.

    Raises:
        ExportError: the network cannot be written, the target would not build it or would compute something else, the
            folder holds other things, a picture or the classes do not fit; nothing is written then.
        CaptureError, InputError: the model or the inputs cannot be used.
    """
    folder = _check_folder(Path(dir))
    with tempfile.TemporaryDirectory(prefix="effp_fx-") as place:
        work = Work(model, example_inputs, target, detection, dynamic_batch, Path(place) / MODEL, progress)
        report, checked = work.export(part, opset)
        made = _Bundle(work, report, checked, preprocess, classes)
        files = made.files(samples, calibration)
        notes = (*report.notes, *made.notes)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_file.write(folder / name, data)
        if name.endswith(".sh"):
            (folder / name).chmod(0o755)
    written = tuple(sorted(files))
    zipped = archive.write(folder, written, folder.with_name(f"{folder.name}.tar.gz")) if tar else None
    return HandoffReport(Path(dir), written, report, checked, zipped, notes)


def _check_folder(folder: Path) -> Path:
    """Refuse a folder that is not ours to write into, before the long work begins."""
    path = Path(os.path.realpath(folder))
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise ExportError(
            "the folder holds other things", where=str(folder), expected="a new or empty folder, or an earlier bundle"
        )
    if path.exists() and not path.is_dir():
        raise ExportError("the folder cannot be made", where=str(folder), seen="a file of this name")
    return path


class _Bundle:
    """The files of a bundle, made in memory before one of them is written."""

    def __init__(
        self,
        work: Work,
        report: ExportReport,
        checked: TensorRTReport,
        preprocess: Preprocess | None,
        classes: Classes,
    ) -> None:
        self._work, self._report, self._checked = work, report, checked
        self._image: Port | None = image_port(report)
        how, note = (preprocess, None) if preprocess is not None else of_family(work.network)
        self.notes: tuple[str, ...] = (note,) if note and self._image else ()
        network = work.network
        self._manifest = manifest.describe(work.model, network, report, checked, self._image, how, classes)
        self._manifest["notes"] += list(self.notes)

    def files(self, given: Given, calibration: Given) -> Files:
        """Name -> bytes; the manifest comes last."""
        self._work.progress("run samples in PyTorch and ONNX Runtime")
        files: Files = {MODEL: self._work.file.read_bytes()}
        data = self._work.file.with_name(f"{MODEL}.data")
        if data.exists():
            files[data.name] = data.read_bytes()
        files["samples.npz"], count = self._samples(given)
        files |= self._calibration(calibration)
        files |= board_files.read(self._settings())
        files[manifest.SCHEMA] = manifest.schema()
        files["README.md"] = guide.readme(self._manifest, self._checked, self._line(), count)
        return {**files, MANIFEST: manifest.with_files(self._manifest, files)}

    def _samples(self, given: Given) -> tuple[bytes, int]:
        recorded = self._work.record(self._report)
        shown: list[Picture] = []
        if self._image is not None:
            own = [drawn(seed) for seed in range(_SAMPLES)]
            shown = pictures_from(given, _SAMPLES) if given is not None else own
            inputs = inputs_of(shown, self._how(), self._image)
        else:
            inputs = inputs_of_example(recorded, range(_SAMPLES))
        found = references(recorded, self._work.file, self._report, inputs, self._manifest)
        return packed(shown, inputs, found), len(shown)

    def _calibration(self, given: Given) -> Files:
        if given is None:
            return {}
        if self._image is None:
            raise ExportError("a network that takes no pictures is not calibrated on pictures")
        fitted = [images.fit(picture, self._how())[0] for picture in pictures_from(given, _CALIBRATION)]
        self._manifest["calibration"] = {"pictures": len(fitted)}
        stream = io.BytesIO()
        np.save(stream, np.stack(fitted), allow_pickle=False)
        return {"calibration/images.npy": stream.getvalue()}

    def _how(self) -> dict[str, Any]:
        (how,) = [item["preprocess"] for item in self._manifest["inputs"] if item["preprocess"] is not None]
        found: dict[str, Any] = how
        return found

    def _settings(self) -> dict[str, str]:
        """What build.sh has in its own lines."""
        aim = self._checked.target
        return {
            "TARGET": shlex.quote(aim.name),
            "TENSORRT": shlex.quote(aim.tensorrt),
            "WORKSPACE_MIB": str(aim.workspace_mib),
            "DLA_CORES": str(aim.dla_cores),
            "SHAPES": f"({' '.join(self._shapes())})",
        }

    def _shapes(self) -> Iterable[str]:
        """The three options for inputs with a free batch."""
        free = [port for port in self._report.inputs if not all(isinstance(size, int) for size in port.shape)]
        for option, batch in (("minShapes", 1), ("optShapes", 1), ("maxShapes", 8)) if free else ():
            sizes = [
                f"{port.name}:{'x'.join(str(size if isinstance(size, int) else batch) for size in port.shape)}"
                for port in self._report.inputs
            ]
            yield shlex.quote(f"--{option}={','.join(sizes)}")

    def _line(self) -> str:
        aim = self._checked.target
        shapes = "".join(f" {word}" for word in self._shapes())
        return (
            f"trtexec --onnx={MODEL} --fp16 --memPoolSize=workspace:{aim.workspace_mib} "
            f"--timingCacheFile=engines/timing.cache --useCudaGraph{shapes} --saveEngine=engines/model.fp16.engine"
        )
