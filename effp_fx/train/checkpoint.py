"""A run's state in one safetensors file: tensors as tensors, all else as JSON in its notes; atomic, no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from effp_fx import weights_file
from effp_fx.errors import FileFormatError

KIND = "training checkpoint"
_VERSION = 1


def write(path: str | os.PathLike[str], state: dict[str, Any]) -> Path:
    """Write a state of nested dicts (with keys of text or whole numbers), lists, tuples, tensors, numbers, strings.

    Raises:
        FileFormatError: something else is in it, or the file cannot be written; what was there before still is.
    """
    tensors: dict[str, Tensor] = {}
    tree = _packed(state, "", tensors)
    return weights_file.write(path, tensors, {"kind": KIND, "checkpoint": str(_VERSION), "state": json.dumps(tree)})


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that `write` wrote, tensors on the CPU.

    Raises:
        FileFormatError: the file is missing, truncated, altered, or no checkpoint of this version.
    """
    tensors, notes = weights_file.read(path)
    if notes.get("kind") != KIND or notes.get("checkpoint") != str(_VERSION):
        raise FileFormatError(
            "this is not a checkpoint of this effp_fx",
            where=os.fspath(path),
            seen=f"{notes.get('kind', 'a file of another kind')}, version {notes.get('checkpoint', 'unknown')}",
            expected=f"version {_VERSION} of what `effp-fx train` writes as last.safetensors",
        )
    try:
        state = _unpacked(json.loads(notes["state"]), tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError("the checkpoint's state is malformed", where=os.fspath(path), seen=str(error)) from error
    assert isinstance(state, dict)  # `write` takes nothing else, and a digest holds the file together
    return state


def _packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value. Containers and tensors become a list of their kind and content, which nothing else is."""
    if isinstance(value, Tensor):
        tensors[place] = value
        return ["tensor", place]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        below = f"{place}/" if place else ""
        return ["dict", [[key, _packed(item, f"{below}{key}", tensors)] for key, item in value.items()]]
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, [_packed(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]]
    raise FileFormatError("a checkpoint cannot hold this", where=place, seen=type(value).__name__)


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpacked(item, tensors) for key, item in content}
    items = [_unpacked(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
