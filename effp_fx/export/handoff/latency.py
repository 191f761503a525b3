"""What is timed of a bundle or an ONNX file: an engine of TensorRT where there is one, else ONNX Runtime."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from effp_fx.errors import ExportError
from effp_fx.evaluate.latency import Call, onnx_call
from effp_fx.export.handoff.board.runtime.bundle import MANIFEST, Bundle, Failure, shape_of
from effp_fx.export.handoff.board.runtime.engine import TensorRT, engines

TENSORRT, RUNTIME = "TensorRT", "ONNX Runtime"


def runtime_of(paths: list[Path]) -> str:
    """TensorRT where it is installed and every path is a bundle whose engine was built here, else ONNX Runtime.

    Both networks are timed by the same.
    """
    if importlib.util.find_spec("tensorrt") is None:
        return RUNTIME
    return TENSORRT if all((path / MANIFEST).is_file() and engines(Bundle(path)) for path in paths) else RUNTIME


def call_of(path: str | os.PathLike[str], runtime: str, threads: int = 0) -> Call:
    """One run of a bundle or an ONNX file on random inputs.

    Raises:
        ExportError: the folder is no bundle, or its engine does not run here.
        FileFormatError: ONNX Runtime does not read the file.
    """
    place = Path(path)
    if not place.is_dir():
        return onnx_call(place, threads=threads)
    try:
        bundle = Bundle(place)
        bundle.verify()
        if runtime == RUNTIME:
            return onnx_call(bundle.model, threads=threads)
        return _by_tensorrt(bundle)
    except Failure as error:
        raise ExportError("this folder cannot be timed", where=str(path), seen=str(error)) from error


def _by_tensorrt(bundle: Bundle) -> Call:
    engine = TensorRT(engines(bundle)[0])
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        item["name"]: random.random(shape_of(item)).astype(item["dtype"]) for item in bundle.manifest["inputs"]
    }
    return lambda: engine.run(feeds)
