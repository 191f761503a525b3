"""The tables of releases, boards and accelerators: data files beside this one, each with its source and its date.

A new release of TensorRT is a new file `parser-X.Y.json` and a line in `targets.json`; no code changes.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from effp_fx.errors import ExportError
from effp_fx.export.tensorrt.findings import Finding, Verdict

_FOLDER = "data"


@dataclass(frozen=True)
class Release:
    """What one release's ONNX parser takes."""

    name: str
    source: str
    date: str
    opsets: tuple[int, int]
    """The lowest and highest opset that its documentation names; the parser enforces neither."""
    types: dict[str, tuple[str, ...]]
    """Op -> types of its data, as TensorRT names them; an op that is listed as not supported has none."""
    unchecked: frozenset[str]
    """Ops whose restrictions in the operator table no rule here looks at."""
    features: dict[str, Finding]
    """What the release does with a form of an op that `features.py` recognises."""
    limits: dict[str, int]
    native_int64: bool
    plugins: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Accelerator:
    """What a generation of NVIDIA's deep learning accelerator (DLA) takes; ranges are inclusive."""

    name: str
    source: str
    date: str
    rules: dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A board, the software on it, and how much room there is."""

    name: str
    board: str
    software: str
    tensorrt: str
    release: Release
    accelerator: Accelerator | None
    dla_cores: int
    workspace_mib: int
    opset: int
    """The opset to export at."""


def target_names() -> tuple[str, ...]:
    """The targets that there are tables for."""
    return tuple(_read("targets.json")["targets"])


@functools.cache
def target(name: str) -> Target:
    """The target of this name. Raises ExportError where there is no table for it."""
    known = _read("targets.json")["targets"]
    if name not in known:
        raise ExportError("this target is not known", seen=repr(name), expected=", ".join(known))
    data = known[name]
    return Target(
        name,
        data["board"],
        data["software"],
        data["tensorrt"],
        release(data["parser"]),
        accelerator(data["dla"]) if data["dla"] else None,
        data["dla_cores"],
        data["workspace_mib"],
        data["opset"],
    )


@functools.cache
def release(name: str) -> Release:
    """The table of one release of the parser."""
    data = _read(f"parser-{name}.json")
    features = {
        rule: Finding(rule, Verdict(entry["verdict"]), entry["why"], entry.get("mend"))
        for rule, entry in data["features"].items()
    }
    low, high = data["documented_opset"]
    return Release(
        data["release"],
        data["source"],
        data["date"],
        (low, high),
        {op: tuple(entry["types"]) for op, entry in data["ops"].items()},
        frozenset(op for op, entry in data["ops"].items() if entry.get("unchecked")),
        features,
        data["limits"],
        data["int64"] == "native",
        data["plugins"],
    )


@functools.cache
def accelerator(name: str) -> Accelerator:
    """The table of one generation of the DLA."""
    data = _read(f"dla-{name}.json")
    return Accelerator(data["engine"], data["source"], data["date"], data)


def _read(name: str) -> dict[str, Any]:
    text = resources.files(__package__).joinpath(_FOLDER, name).read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data
