"""The manifest of a bundle: all that a program on the board has to know of the model, as plain JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata, resources
from typing import Any

import onnx
from torch import nn

from effp_fx.errors import ExportError, PlanMismatchError
from effp_fx.export.handoff.board.runtime.bundle import FORMAT, VERSION
from effp_fx.export.handoff.preprocessing import Preprocess
from effp_fx.export.report import Decoding, ExportReport, Port
from effp_fx.export.tensorrt import TensorRTReport
from effp_fx.plan import package_version, plan_of

Classes = Sequence[str] | Mapping[int, str] | None

SCHEMA = "manifest.schema.json"
TOLERANCES = {
    "fp32": {"detections": 0.01, "overlap": 0.95, "relative": 1e-3, "score": 1e-3},
    "fp16": {"detections": 0.05, "overlap": 0.9, "relative": 2e-2, "score": 2e-2},
    "int8": {"detections": 0.2, "overlap": 0.75, "relative": 0.2, "score": 0.1},
}
"""How far outputs may be from the reference: of an output the largest difference over its largest value; of detections,
compared as sets, the part that has no partner with this overlap and a score this near."""
_DTYPES = {"FLOAT": "float32", "FLOAT16": "float16", "DOUBLE": "float64", "BOOL": "bool"}


def describe(
    model: nn.Module,
    network: nn.Module,
    report: ExportReport,
    checked: TensorRTReport,
    image: Port | None,
    preprocess: Preprocess,
    classes: Classes,
) -> dict[str, Any]:
    """All of the manifest but the checksums of the files.

    Raises:
        ExportError: the classes do not fit the scores.
    """
    decoding = report.decoding
    return {
        "calibration": None,
        "check": _check_json(checked),
        "classes": class_names(network, decoding, classes),
        "decoding": _decoding_json(decoding),
        "errors": {
            name: {"absolute": report.max_absolute_error[name], "relative": report.max_relative_error[name]}
            for name in sorted(report.max_relative_error)
        },
        "format": FORMAT,
        "format_version": VERSION,
        "inputs": [_input_json(port, preprocess if port is image else None) for port in report.inputs],
        "model": {
            "bytes": report.bytes,
            "file": "model.onnx",
            "flops": 2 * sum(node.macs for node in checked.nodes),
            "name": type(network).__name__,
            "nodes": report.nodes_after,
            "opset": report.opset,
            "params": sum(parameter.numel() for parameter in network.parameters()),
            "part": report.part,
        },
        "notes": list(report.notes),
        "outputs": [{**_port_json(port), "meaning": port.meaning} for port in report.outputs],
        "plan": _plan_json(network) or _plan_json(model),
        "target": _target_json(checked),
        "tolerances": TOLERANCES,
        "versions": _versions(),
    }


def class_names(network: nn.Module, decoding: Decoding | None, given: Classes) -> list[dict[str, Any]]:
    """Label and name of each class, in the order of the scores' columns.

    Names come from the user, else from the model where it carries them, else they are numbers.
    """
    labels = decoding.classes if decoding else ()
    if given is None:
        carried = _carried(network)
        return [{"label": int(label), "name": str(carried.get(int(label), f"class {label}"))} for label in labels]
    if isinstance(given, Mapping):
        missing = [label for label in labels if label not in given]
        if missing:
            seen = f"no name for label {', '.join(map(str, missing[:5]))}"
            raise ExportError("some classes have no name", seen=seen, expected=f"{len(labels)} names")
        return [{"label": int(label), "name": str(given[label])} for label in labels or given]
    names = list(given)
    if labels and len(names) != len(labels):
        expected = f"{len(labels)}, one for each column"
        raise ExportError("the classes do not fit the scores", seen=f"{len(names)} names", expected=expected)
    pairs = zip(labels or range(len(names)), names, strict=True)
    return [{"label": int(label), "name": str(name)} for label, name in pairs]


def _carried(network: nn.Module) -> dict[int, str]:
    """Names that a model holds itself: `names` of Ultralytics, `config.id2label` of Hugging Face."""
    config: Any = getattr(network, "config", None)
    for found in (getattr(network, "names", None), getattr(config, "id2label", None)):
        if isinstance(found, Mapping):
            return {int(label): str(name) for label, name in found.items()}
    return {}


def _input_json(port: Port, preprocess: Preprocess | None) -> dict[str, Any]:
    made = _port_json(port)
    how = None
    if preprocess is not None:
        height, width = (int(size) for size in port.shape[-2:])
        how = preprocess.as_json(height, width)
    return {**made, "layout": "NCHW" if len(port.shape) == 4 else "CHW" if how else None, "preprocess": how}


def _port_json(port: Port) -> dict[str, Any]:
    return {"dtype": _DTYPES.get(port.dtype, port.dtype.lower()), "name": port.name, "shape": list(port.shape)}


def _decoding_json(decoding: Decoding | None) -> dict[str, Any] | None:
    if decoding is None:
        return None
    return {key: list(value) if isinstance(value, tuple) else value for key, value in sorted(asdict(decoding).items())}


def _plan_json(model: nn.Module) -> dict[str, Any] | None:
    try:
        summary = plan_of(model).summary
    except PlanMismatchError:
        return None
    return {key: summary[key] for key in sorted(summary)}


def _check_json(checked: TensorRTReport) -> dict[str, Any]:
    release = checked.target.release
    return {
        "builds": checked.builds,
        "counts": {str(verdict): count for verdict, count in sorted(checked.counts.items())},
        "date": release.date,
        "dla": {
            precision: {"loadables": one.loadables, "macs_share": one.macs_share, "switches": one.switches}
            for precision, one in sorted(checked.dla.items())
        },
        "notes": list(checked.notes),
        "source": release.source,
        "verdict": str(checked.verdict),
    }


def _target_json(checked: TensorRTReport) -> dict[str, Any]:
    aim = checked.target
    return {
        "board": aim.board,
        "dla_cores": aim.dla_cores,
        "name": aim.name,
        "software": aim.software,
        "tensorrt": aim.tensorrt,
        "workspace_mib": aim.workspace_mib,
    }


def _versions() -> dict[str, str]:
    others = {name: metadata.version(name) for name in ("onnxruntime", "torch")}
    return {"effp_fx": package_version(), "onnx": onnx.__version__, **others}


def with_files(manifest: dict[str, Any], files: Mapping[str, bytes]) -> bytes:
    """The manifest's own bytes, with size and SHA-256 of every other file: sorted, so that equal ones are equal."""
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    text = json.dumps({**manifest, "files": entries}, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def schema() -> bytes:
    """The JSON schema of the manifest."""
    return resources.files(__package__).joinpath(SCHEMA).read_bytes()
