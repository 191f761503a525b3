"""Inputs to pack with a model, and what PyTorch and ONNX Runtime make of them: what check.py compares with."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effp_fx.errors import ExportError
from effp_fx.export import parity
from effp_fx.export.handoff.board.runtime import detections, images
from effp_fx.export.handoff.pictures import Picture
from effp_fx.export.parts import Recorded
from effp_fx.export.report import ExportReport, Port
from effp_fx.inputs import Example

Array = NDArray[Any]
Manifest = dict[str, Any]
PYTORCH, RUNTIME = "pytorch", "onnxruntime"


def image_port(report: ExportReport) -> Port | None:
    """The input that takes pictures: the only one, of three channels, with a height and a width."""
    found = [port for port in report.inputs if port.dtype == "FLOAT" and len(port.shape) in (3, 4)]
    if len(report.inputs) != 1 or not found:
        return None
    channels, *size = found[0].shape[-3:]
    return found[0] if channels == 3 and all(isinstance(side, int) for side in size) else None


def inputs_of(pictures: Sequence[Picture], how: Manifest, port: Port) -> list[dict[str, Array]]:
    """The network's input for each picture; a free batch is 1."""
    shape = tuple(size if isinstance(size, int) else 1 for size in port.shape)
    prepared = [images.prepare(picture, how)[0] for picture in pictures]
    return [{port.name: np.ascontiguousarray(np.broadcast_to(one, shape))} for one in prepared]


def inputs_of_example(recorded: Recorded, seeds: Sequence[int]) -> list[dict[str, Array]]:
    """Random inputs of a network that takes no pictures, like the example's."""
    example = recorded.examples[0]
    drawn = [parity.other_values(example, seed) for seed in seeds]
    return [_named(recorded, one) for one in drawn]


def _named(recorded: Recorded, example: Example) -> dict[str, Array]:
    tensors = recorded.feed(example).tensors()
    part = recorded.part
    return {name: tensors[at].detach().cpu().numpy() for name, at in zip(part.inputs, part.taken, strict=True)}


def references(
    recorded: Recorded, file: Path, report: ExportReport, inputs: Sequence[dict[str, Array]], manifest: Manifest
) -> dict[str, list[dict[str, Array]]]:
    """For each source the outputs for each input, named as in the file.

    ONNX Runtime cannot run TensorRT's plugins; such a file has PyTorch's outputs alone. With detections in the file,
    PyTorch's are chosen by the code that chooses on the board.
    """
    torches = [_by_pytorch(recorded, one) for one in inputs]
    if report.part == "full":
        torches = [_as_detections(one, manifest) for one in torches]
    found = {PYTORCH: torches}
    if report.decoding is None or report.decoding.suppression != "EfficientNMS_TRT":
        session = parity.open_session(file)
        names = [port.name for port in report.outputs]
        found[RUNTIME] = [dict(zip(names, session.run(names, one), strict=True)) for one in inputs]
    return found


def _by_pytorch(recorded: Recorded, inputs: dict[str, Array]) -> dict[str, Array]:
    part = recorded.part
    with torch.no_grad():
        outputs = part.graph_module(*[torch.from_numpy(inputs[name].copy()) for name in part.inputs])
    return {name: value.detach().cpu().numpy() for name, value in zip(part.outputs, outputs, strict=True)}


def _as_detections(outputs: dict[str, Array], manifest: Manifest) -> dict[str, Array]:
    """Boxes and scores as the four outputs of a file that holds detections."""
    decoding, how = manifest["decoding"], manifest["inputs"][0]["preprocess"]
    size = (int(how["width"]), int(how["height"]))
    unit = np.asarray(size * 2 if decoding["normalised"] else (1,) * 4, dtype=np.float32)
    found = detections.detect(outputs, {"boxes": "boxes", "scores": "scores"}, decoding, size)
    shapes = {item["meaning"]: (item["name"], item["shape"], item["dtype"]) for item in manifest["outputs"]}
    made = {}
    for meaning, (name, shape, dtype) in shapes.items():
        whole = np.zeros([len(found), *shape[1:]], dtype=dtype)
        for at, one in enumerate(found):
            rows: dict[str, Any] = {
                "detection boxes": one.boxes / unit,
                "detection scores": one.scores,
                "detection classes": one.labels,
            }
            whole[at, : len(one.scores)] = len(one.scores) if meaning == "count" else rows[meaning]
        made[name] = whole
    return made


def packed(
    pictures: Sequence[Picture],
    inputs: Sequence[dict[str, Array]],
    found: dict[str, list[dict[str, Array]]],
) -> bytes:
    """The bytes of samples.npz; pictures are cut to one size by what is packed, so they must have one.

    Raises:
        ExportError: the pictures differ in size.
    """
    arrays: dict[str, Array] = {}
    if pictures:
        if len({picture.shape for picture in pictures}) > 1:
            raise ExportError("sample pictures must be of one size", seen=str([one.shape for one in pictures]))
        arrays["pictures"] = np.stack(pictures)
    for source, rows in (("input", inputs), *found.items()):
        arrays |= {f"{source}/{name}": np.stack([row[name] for row in rows]) for name in rows[0]}
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})
    return stream.getvalue()
