"""An ONNX file from the exporter to its place: read, checked, simplified, checked again, moved there as a whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxsim

from effp_fx import atomic_file
from effp_fx.errors import ExportError
from effp_fx.export import exporters

ONE_FILE = 2**31 - 2**20
"""Bytes that one protobuf file holds, with some room; weights of larger networks stand in a file beside it."""


def read(path: Path, opset: int) -> onnx.ModelProto:
    """What an exporter wrote, with its weights. Raises ExportError where it is invalid or of another opset."""
    check(path, opset)
    return onnx.load(str(path))


def check(path: Path, opset: int) -> None:
    """Let onnx.checker look at a file, shapes included, and read again which opset it is stamped with."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference raise errors of their own, without a base in common
        raise ExportError(
            f"what was written is not valid ONNX of opset {opset}", seen=str(error).strip().splitlines()[0][:400]
        ) from error
    found = exporters.opset_of(onnx.load(str(path), load_external_data=False))
    if found != opset:
        raise ExportError(
            "the exporter wrote another opset than it was asked for",
            seen=f"opset {found}",
            expected=f"opset {opset}",
            mend=f"opset={found}, if what reads the file takes it",
        )


def simplify(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
    """The model with constants folded and batch norms merged, or the model as it is and why."""
    if model.ByteSize() > ONE_FILE:
        return model, "not simplified: more than 2 GB"
    try:
        with exporters.quiet(), _muted():
            result, same = onnxsim.simplify(model)
    except Exception as error:  # bindings of a C++ library: anything may come out
        return model, f"not simplified: {str(error).strip().splitlines()[0][:200]}"
    if not same:
        return model, "not simplified: onnxsim's own check failed"
    return result, None


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Nothing from C++ either, which writes past Python's own streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        with open(os.devnull, "wb") as nowhere:
            for descriptor in kept:
                os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the model to `path`, or, beyond 2 GB, its weights to `path`.data too."""
    if model.ByteSize() <= ONE_FILE:
        path.write_bytes(model.SerializeToString())
        return
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=256)


def put(source: Path, path: Path) -> int:
    """Move a saved model, weights beside it included, to where the user wants it; return its bytes.

    Raises:
        ExportError: the folder is missing, full or not writable; what was at `path` is untouched.
    """
    data = source.with_name(f"{source.name}.data")
    try:
        size = source.stat().st_size
        if data.exists():
            size += data.stat().st_size
            _move(data, path.with_name(f"{path.name}.data"))
        atomic_file.write(path, source.read_bytes())
    except OSError as error:
        raise ExportError("the file cannot be written", where=str(path), seen=str(error)) from error
    return size


def _move(source: Path, target: Path) -> None:
    """Copy beside the target first: the temporary folder may lie on another disk."""
    beside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.part")
    try:
        with open(source, "rb") as given, open(beside, "xb") as made:
            while piece := given.read(1 << 24):
                made.write(piece)
            made.flush()
            os.fsync(made.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
