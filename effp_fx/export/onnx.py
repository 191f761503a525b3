"""Writes the dense part of a network to an ONNX file: checked, simplified, run and compared before it is there."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from effp_fx import dense_part, graph
from effp_fx.capture import capture, private_copy, tensors_of, undisturbed
from effp_fx.dense_part import DensePart
from effp_fx.errors import ExportError
from effp_fx.export import exporters, onnx_file, parity
from effp_fx.export.dynamic_batch import free_batch
from effp_fx.export.exporters import Signature
from effp_fx.inputs import Example, as_example
from effp_fx.models import adapter_for, example_for

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Port:
    """An input or output of the file."""

    name: str
    dtype: str
    """As ONNX calls it: FLOAT, INT64."""
    shape: tuple[int | str, ...]
    """Sizes; a name for one that is free, "?" where the file does not say."""

    def __str__(self) -> str:
        return f"{self.name} {self.dtype.lower()}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from the PyTorch network."""

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: int
    nodes_before: int
    """Nodes as the exporter wrote them."""
    nodes_after: int
    """Nodes after simplification."""
    initialisers: int
    bytes: int
    max_absolute_error: dict[str, float]
    """For each output, over the example and a second, random input."""
    max_relative_error: dict[str, float]
    """The same over the largest value of the output."""
    seconds: float
    own_outputs: bool
    """Whether the outputs are the model's own; else the raw heads before its post-processing."""
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The largest relative error of all outputs."""
        return max(self.max_relative_error.values())


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    part: str = "network",
    opset: int = 17,
    dynamic_batch: bool = False,
    simplify: bool = True,
    progress: Progress = lambda _: None,
) -> ExportReport:
    """Write the dense part of a model to an ONNX file, and run it against PyTorch before it is put in its place.

    The dense part goes up to the last tensors that carry no post-processing (suppression, top-k, thresholds); a model
    without any is written whole. The model is left as it was; it is recorded in eval mode.

    Args:
        model: any module that runs, compact or dense.
        path: the file to write or to replace.
        example_inputs: what `model(...)` takes; None where the family of the model is known.
        part: "network", the only one so far.
        opset: 13 to 23. 17 is what TensorRT 8 reads rightly.
        dynamic_batch: leave the batch size of tensor inputs free.
        simplify: fold constants and merge batch norms with onnxsim.
        progress: called with a line before each long step.

    Raises:
        ExportError: the network cannot be written, or does not compute the same; nothing is written then.
        CaptureError, InputError: the model or the inputs cannot be used.
    """
    begin = time.perf_counter()
    target = _check_request(Path(path), part, opset)
    network = _network(model)
    example = as_example(example_inputs) if example_inputs is not None else example_for(network)
    made = _record(network, example, dynamic_batch, progress)
    with tempfile.TemporaryDirectory(prefix="effp_fx-") as folder:
        file = Path(folder) / target.name
        progress(f"write opset {opset}")
        before, remarks = _write(made, file, opset, simplify)
        progress("run in ONNX Runtime beside PyTorch")
        errors = _compare(network, made, file)
        size = onnx_file.put(file, target)
        written = onnx.load(str(file), load_external_data=False)
    return ExportReport(
        path=Path(path),
        inputs=_ports(written.graph.input),
        outputs=_ports(written.graph.output),
        opset=exporters.opset_of(written),
        nodes_before=before,
        nodes_after=len(written.graph.node),
        initialisers=len(written.graph.initializer),
        bytes=size,
        max_absolute_error=errors.absolute,
        max_relative_error=errors.relative,
        seconds=time.perf_counter() - begin,
        own_outputs=made.part.own_outputs,
        notes=(*remarks, *errors.remarks()),
    )


@dataclass(frozen=True)
class _Recorded:
    """The network to write, and the inputs that it is compared on; it is exported on the last of them."""

    part: DensePart
    signature: Signature
    examples: tuple[Example, ...]
    reads: tuple[str, ...]


def _record(network: nn.Module, example: Example, dynamic_batch: bool, progress: Progress) -> _Recorded:
    progress("capture in eval mode")
    recorded = capture(network, example)
    found = dense_part.find(recorded, example)
    _check_dtypes(found)
    if not dynamic_batch:
        fixed = Signature(found.inputs, found.outputs, ({},) * len(found.inputs), ({},) * len(found.outputs))
        return _Recorded(found, fixed, (example,), recorded.reads)
    progress("capture with a larger batch")
    free = free_batch(network, example, found)
    signature = Signature(free.part.inputs, free.part.outputs, free.free_inputs, free.free_outputs)
    return _Recorded(free.part, signature, (example, free.example), recorded.reads)


def _check_request(path: Path, part: str, opset: int) -> Path:
    """Refuse what cannot be, before the long work begins; return the path with links followed."""
    if part != "network":
        raise ExportError(
            f"part={part!r} is not there yet",
            expected='part="network"',
            mend="add the post-processing on the device for now",
        )
    exporters.check_opset(opset)
    target = Path(os.path.realpath(path))
    if target.is_dir() or not target.parent.is_dir():
        seen = "a folder of this name" if target.is_dir() else f"no folder {target.parent}"
        raise ExportError("the file cannot be written", where=str(path), seen=seen)
    return target


def _network(model: nn.Module) -> nn.Module:
    """The module that computes, in what the user handed over."""
    adapter = adapter_for(model) if isinstance(model, nn.Module) else None
    path = adapter.network_path(model) if adapter else ""
    return model.get_submodule(path) if path else model


def _check_dtypes(found: DensePart) -> None:
    kinds = {value.dtype for value in found.graph_module.state_dict().values()}
    if torch.bfloat16 in kinds:
        raise ExportError(
            "a bfloat16 network cannot be compared in ONNX Runtime",
            mend="export model.float(); the device's builder lowers the precision",
        )


def _write(made: _Recorded, file: Path, opset: int, simplify: bool) -> tuple[int, list[str]]:
    """Write the checked, simplified file; return the number of nodes before simplification, and remarks."""
    tensors = made.examples[-1].tensors()
    inputs = [tensors[index] for index in made.part.taken]
    exporters.write(made.part.graph_module, inputs, file, opset, made.signature)
    model = onnx_file.read(file, opset)
    before = len(model.graph.node)
    notes: list[str] = []
    if simplify:
        model, why_not = onnx_file.simplify(model)
        notes += [why_not] if why_not else []
    _state_shapes(model, made.part, made.signature)
    for old in file.parent.iterdir():
        old.unlink()
    onnx_file.save(model, file)
    onnx_file.check(file, opset)
    return before, notes


def _state_shapes(model: onnx.ModelProto, found: DensePart, signature: Signature) -> None:
    """Write the sizes that are known into the outputs: exporters give up on them where a dimension is free."""
    nodes: Any = found.graph_module.graph.output_node().args[0]
    for value, node, free in zip(model.graph.output, nodes, signature.free_outputs, strict=True):
        value.type.tensor_type.ClearField("shape")
        for dim, size in enumerate(graph.info(node).shape):
            entry = value.type.tensor_type.shape.dim.add()
            if dim in free:
                entry.dim_param = free[dim]
            else:
                entry.dim_value = size


def _compare(network: nn.Module, made: _Recorded, file: Path) -> parity.Errors:
    """Compare the file with the dense part, and with the model itself where the outputs are its own."""
    session = parity.open_session(file)
    runner = private_copy(network).eval()
    part, errors = made.part, parity.Errors()
    doubt = f"what Python read out of tensors is fixed to the example: {made.reads[0]}" if made.reads else None
    for example in made.examples:
        for kind, inputs in (("the example inputs", example), ("random inputs", parity.other_values(example))):
            got = parity.run_onnx(session, part, inputs)
            noise = functools.cache(partial(parity.rounding, part, inputs))
            recording = partial(parity.run_graph, part.graph_module, part)
            parity.compare(got, part, inputs, recording, errors, noise=noise, where=f"the recording on {kind}")
            if part.own_outputs:
                own, where = partial(_run_model, runner), f"the model on {kind}"
                parity.compare(got, part, inputs, own, errors, noise=noise, where=where, doubt=doubt)
    return errors


def _run_model(runner: nn.Module, example: Example) -> Sequence[Tensor]:
    with undisturbed(), torch.no_grad():
        torch.manual_seed(0)
        return tensors_of(runner(*example.args, **example.kwargs))[0]


def _ports(values: Sequence[onnx.ValueInfoProto]) -> tuple[Port, ...]:
    ports = []
    for value in values:
        kind = value.type.tensor_type
        shape = tuple(dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in kind.shape.dim)
        ports.append(Port(value.name, onnx.TensorProto.DataType.Name(kind.elem_type), shape))
    return tuple(ports)
