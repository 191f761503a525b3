"""Writes a part of a network to an ONNX file: checked, simplified, run and compared before it is there."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from effp_fx import graph
from effp_fx.capture import private_copy
from effp_fx.errors import ExportError
from effp_fx.export import comparison, detections, exporters, identities, integers, onnx_file, parts
from effp_fx.export.layer_names import name_convolutions
from effp_fx.export.parts import Recorded
from effp_fx.export.report import PARTS, RUNTIME, TARGETS, ExportReport, ports
from effp_fx.export.softmax_order import softmax_first
from effp_fx.inputs import Example, as_example, repeat_batch
from effp_fx.models import Detection, adapter_for, example_for

Progress = Callable[[str], None]

_MEANINGS = {
    "boxes": "boxes",
    "scores": "scores",
    detections.COUNT: "count",
    detections.BOXES: "detection boxes",
    detections.SCORES: "detection scores",
    detections.CLASSES: "detection classes",
}


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    part: str = "network",
    opset: int = 17,
    batch: int | str | None = None,
    target: str | None = None,
    detection: Detection | None = None,
    dynamic_batch: bool = False,
    simplify: bool = True,
    progress: Progress = lambda _: None,
) -> ExportReport:
    """Write a part of a model to an ONNX file, and run it against PyTorch before it is put in its place.

    The parts:

    - "network": up to the last tensors that carry no post-processing (suppression, top-k, thresholds); a model without
      any is written whole.
    - "decoded": `boxes` (batch, anchors, 4) and `scores` (batch, anchors, classes), probabilities, of every anchor.
    - "full": detections, chosen by the thresholds of the model or its family: `num_detections`, `detection_boxes`
      (corners), `detection_scores`, `detection_classes` (the model's own labels), padded to the largest number.

    The model is left as it was; it is recorded in eval mode.

    Args:
        model: any module that runs, compact or dense.
        path: the file to write or to replace.
        example_inputs: what `model(...)` takes; None where the family of the model is known.
        part: "network", "decoded" or "full".
        opset: 13 to 23. 17 is what TensorRT 8 reads rightly.
        batch: how many images at once; None: as many as the example has; "dynamic": any number.
        target: "onnxruntime" (None) or a TensorRT: "jetson-xavier-nx", "jetson-orin", "tensorrt-10". Suppression is an
            ONNX op for the first, a plugin for the others; TensorRT 8 gets 32-bit indices where ONNX allows them.
        detection: what the model's outputs mean, where no family says it.
        dynamic_batch: the same as batch="dynamic".
        simplify: fold constants and merge batch norms with onnxsim.
        progress: called with a line before each long step.

    Raises:
        ExportError: the part cannot be written, or does not compute the same; nothing is written then.
        CaptureError, InputError: the model or the inputs cannot be used.
    """
    begin = time.perf_counter()
    target = RUNTIME if target is None else target
    place = _check_request(Path(path), part, opset, target, batch)
    network = _network(model)
    example = as_example(example_inputs) if example_inputs is not None else example_for(network)
    example = _of_batch(example, batch)
    meaning = parts.detection_of(network, detection, part)
    made = parts.record(network, example, meaning, dynamic_batch or batch == "dynamic", progress)
    with tempfile.TemporaryDirectory(prefix="effp_fx-") as folder:
        progress(f"write opset {opset}")
        work = _Work(made, Path(folder), place.name, opset, target, simplify)
        written = work.write(part == "full")
        progress("run in ONNX Runtime beside PyTorch")
        found = comparison.compare(private_copy(network).eval(), made, written.decoded, written.runnable)
        size = onnx_file.put(written.file, place)
        file = onnx.load(str(written.file), load_external_data=False)
    default = "own" if made.part.own_outputs else "raw"
    return ExportReport(
        path=Path(path),
        inputs=ports(list(file.graph.input), {name: "image" for name in made.part.inputs if "image" in name}, "input"),
        outputs=ports(list(file.graph.output), _MEANINGS if meaning else {}, default),
        opset=exporters.opset_of(file),
        nodes_before=written.before.nodes,
        nodes_after=len(file.graph.node),
        initialisers=len(file.graph.initializer),
        bytes=size,
        max_absolute_error=found.errors.absolute,
        max_relative_error=found.errors.relative,
        seconds=time.perf_counter() - begin,
        own_outputs=made.part.own_outputs,
        notes=(*written.notes, *found.errors.remarks(), *found.notes),
        part=part,
        target=target,
        initialisers_before=written.before.initialisers,
        bytes_before=written.before.bytes,
        decoding=written.decoding,
        detections=found.detections,
        float64_noise=found.noise,
    )


def _check_request(path: Path, part: str, opset: int, target: str, batch: int | str | None) -> Path:
    """Refuse what cannot be, before the long work begins; return the path with links followed."""
    if part not in PARTS:
        raise ExportError(f"there is no part {part!r}", expected=", ".join(PARTS))
    if target not in TARGETS:
        raise ExportError(f"there is no target {target!r}", expected=", ".join(TARGETS))
    whole = isinstance(batch, int) and not isinstance(batch, bool) and batch > 0
    if batch is not None and batch != "dynamic" and not whole:
        raise ExportError("this is no batch", seen=f"batch={batch!r}", expected='a number of images, or "dynamic"')
    exporters.check_opset(opset)
    target_path = Path(os.path.realpath(path))
    if target_path.is_dir() or not target_path.parent.is_dir():
        seen = "a folder of this name" if target_path.is_dir() else f"no folder {target_path.parent}"
        raise ExportError("the file cannot be written", where=str(path), seen=seen)
    return target_path


def _network(model: nn.Module) -> nn.Module:
    """The module that computes, in what the user handed over."""
    adapter = adapter_for(model) if isinstance(model, nn.Module) else None
    path = adapter.network_path(model) if adapter else ""
    return model.get_submodule(path) if path else model


def _of_batch(example: Example, batch: int | str | None) -> Example:
    """The example with this many images; from one of a single image."""
    if not isinstance(batch, int):
        return example
    first = next(iter([*example.args, *example.kwargs.values()]))
    given = len(first) if isinstance(first, (list, tuple)) else int(first.shape[0])
    if batch % given:
        raise ExportError(
            "the example does not repeat to this batch", seen=f"{given} images in the example, batch={batch}"
        )
    return repeat_batch(example, batch // given) if batch != given else example


@dataclass(frozen=True)
class _Size:
    """What a file holds."""

    nodes: int
    initialisers: int
    bytes: int


@dataclass(frozen=True)
class _Written:
    """The files of one export, in a folder that is thrown away."""

    file: Path
    decoded: Path
    """The part without the choice of detections: what is compared with the recording."""
    runnable: Path | None
    """The file with detections as ONNX Runtime can run it."""
    before: _Size
    notes: tuple[str, ...]
    decoding: Any


@dataclass(frozen=True)
class _Work:
    """From a recorded part to files."""

    made: Recorded
    folder: Path
    name: str
    opset: int
    target: str
    simplify: bool

    def write(self, full: bool) -> _Written:
        """Write the part, and with `full` the detections too; each file is checked."""
        raw = self._folder("raw") / self.name
        tensors = self.made.feed(self.made.examples[-1]).tensors()
        inputs = [tensors[index] for index in self.made.part.taken]
        exporters.write(self.made.part.graph_module, inputs, raw, self.opset, self.made.signature)
        before = sum(item.stat().st_size for item in raw.parent.iterdir())
        model = onnx_file.read(raw, self.opset)
        name_convolutions(model, self.made.part.graph_module)
        size = _Size(len(model.graph.node), len(model.graph.initializer), before)
        notes: tuple[str, ...] = ()
        if self.simplify:
            model, why_not = onnx_file.simplify(model)
            notes = (why_not,) if why_not else ()
            model = softmax_first(identities.without_resizes(model))
        self._state_shapes(model)
        decoded = self._save("decoded", integers.narrowed(model) if self._narrow() else model)
        if not full or self.made.decoding is None:
            return _Written(decoded, decoded, None, size, notes, self.made.decoding)
        decoding = self.made.decoding
        suppression = detections.suppression_for(decoding, self.target)
        final = detections.add(model, decoding, self.target, self.opset)
        file = self._save("full", integers.narrowed(final) if self._narrow() else final)
        runnable: Path | None = file
        if suppression == detections.PLUGIN:
            runnable = None
            if self.made.signature.free_inputs[0] == {}:
                twin = detections.add(model, decoding, RUNTIME, self.opset)
                runnable = self._save("twin", twin)
            notes += (f"{suppression} runs in TensorRT only; its twin with NonMaxSuppression was run",)
        return _Written(file, decoded, runnable, size, notes, replace(decoding, suppression=suppression))

    def _narrow(self) -> bool:
        """Whether the target would cast 64-bit indices itself."""
        return self.target.startswith("jetson")

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def _save(self, folder: str, final: onnx.ModelProto) -> Path:
        file = self._folder(folder) / self.name
        onnx_file.save(final, file)
        onnx_file.check(file, self.opset)
        return file

    def _state_shapes(self, model: onnx.ModelProto) -> None:
        """Write the sizes that are known into the outputs: exporters give up on them where a dimension is free."""
        nodes: Any = self.made.part.graph_module.graph.output_node().args[0]
        for value, node, free in zip(model.graph.output, nodes, self.made.signature.free_outputs, strict=True):
            value.type.tensor_type.ClearField("shape")
            for dim, size in enumerate(graph.info(node).shape):
                entry = value.type.tensor_type.shape.dim.add()
                if dim in free:
                    entry.dim_param = free[dim]
                else:
                    entry.dim_value = size
