"""Torch's two ONNX exporters behind one call, chosen by opset, with the noise they make kept away from the user.

The exporter built on torch.export writes opset 18 and later only: asked for less it stays at 18, or stamps 17 on a file
that holds ops of 18. The older TorchScript exporter serves what is below; where it fails, the other one's file of opset
18 is restated in the older opset by `lower_opset`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, fx

from effp_fx.capture import undisturbed
from effp_fx.errors import ExportError
from effp_fx.export import lower_opset

FIRST, SWITCH, LAST = 13, 18, 23
"""The lowest opset that is written, the first that is written by way of torch.export, and the highest."""


@dataclass(frozen=True)
class Signature:
    """Names of the inputs and outputs, and which of their dimensions are free: for each, dimension -> name."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    free_inputs: tuple[dict[int, str], ...]
    free_outputs: tuple[dict[int, str], ...]


def check_opset(opset: int) -> None:
    """Raise ExportError for an opset that neither exporter writes."""
    if isinstance(opset, bool) or not isinstance(opset, int) or not FIRST <= opset <= LAST:
        raise ExportError(
            "this opset is not written",
            seen=f"opset={opset!r}",
            expected=f"{FIRST} to {LAST}",
            mend="opset=17 for TensorRT 8 (JetPack 5 and 6.0), 17 or 18 for what is newer",
        )


def write(module: fx.GraphModule, inputs: Sequence[Tensor], path: Path, opset: int, signature: Signature) -> None:
    """Write the module to `path`; weights beyond what one file holds go beside it.

    Raises:
        ExportError: the exporter cannot say an op in this opset; its own words are under `seen`.
    """
    try:
        with quiet(), undisturbed(), torch.no_grad():
            if opset >= SWITCH:
                _by_torch_export(module, inputs, path, opset, signature)
            else:
                _by_torchscript(module, inputs, path, opset, signature)
    except Exception as error:  # exporters let out whatever their rules for single ops raise
        if opset < SWITCH and _by_lowering(module, inputs, path, opset, signature):
            return
        raise ExportError(
            f"the network cannot be written in ONNX opset {opset}",
            seen=f"{type(error).__name__}: {_first_lines(error)}",
            mend="try opset=18 or later" if opset < SWITCH else "try opset=17, which another exporter writes",
        ) from error


def _by_torchscript(module: fx.GraphModule, inputs: Sequence[Tensor], path: Path, opset: int, names: Signature) -> None:
    free = {
        name: dims
        for name, dims in zip(names.inputs + names.outputs, names.free_inputs + names.free_outputs, strict=True)
        if dims
    }
    torch.onnx.export(
        module,
        tuple(inputs),
        str(path),
        dynamo=False,
        opset_version=opset,
        input_names=list(names.inputs),
        output_names=list(names.outputs),
        dynamic_axes=free or None,
    )


def _by_torch_export(
    module: fx.GraphModule, inputs: Sequence[Tensor], path: Path, opset: int, names: Signature
) -> None:
    shapes = None
    if any(names.free_inputs):
        made = {name: torch.export.Dim(name) for dims in names.free_inputs for name in dims.values()}
        shapes = tuple({dim: made[name] for dim, name in dims.items()} for dims in names.free_inputs)
    program = torch.onnx.export(
        module,
        tuple(inputs),
        dynamo=True,
        opset_version=opset,
        input_names=list(names.inputs),
        output_names=list(names.outputs),
        dynamic_shapes=shapes,
        verbose=False,
    )
    if program is None:
        raise ExportError("the exporter returned nothing")
    program.save(str(path))


def _by_lowering(module: fx.GraphModule, inputs: Sequence[Tensor], path: Path, opset: int, names: Signature) -> bool:
    """By way of the other exporter: opset 18, restated in the older one. Says whether that went well."""
    try:
        with quiet(), undisturbed(), torch.no_grad():
            _by_torch_export(module, inputs, path, SWITCH, names)
            onnx.save(lower_opset.lowered(onnx.load(str(path)), opset), str(path))
            onnx.checker.check_model(str(path), full_check=True)
    except Exception:  # the first exporter's error is the one to show
        return False
    return True


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of the standard ops in a file; 0 where it names none."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on the terminal: no prints, no log lines, no warnings; all as before afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_lines(error: BaseException) -> str:
    """The root of a chain of errors in at most two lines: exporters wrap the word that matters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400]
