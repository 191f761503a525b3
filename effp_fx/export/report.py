"""What an export reports: the file's inputs and outputs, what they mean, and how far they are from PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

PARTS = ("network", "decoded", "full")
RUNTIME = "onnxruntime"
TARGETS = (RUNTIME, "jetson-xavier-nx", "jetson-orin", "tensorrt-10")
"""Where the file is to run; all but the first are TensorRT."""


@dataclass(frozen=True)
class Port:
    """An input or output of the file."""

    name: str
    dtype: str
    """As ONNX calls it: FLOAT, INT64."""
    shape: tuple[int | str, ...]
    """Sizes; a name for one that is free, "?" where the file does not say."""
    meaning: str = "raw"
    """"image" or "input"; "own" (the model's output), "raw" (heads before the post-processing), "boxes", "scores";
    "count", "detection boxes", "detection scores", "detection classes"."""

    def __str__(self) -> str:
        return f"{self.name} {self.dtype.lower()}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Decoding:
    """How boxes and scores are to be read, and how detections are, or were, chosen from them."""

    box_format: str
    """"xyxy" or "cxcywh"."""
    normalised: bool
    """Whether coordinates are parts of the input's width and height; else its pixels."""
    classes: tuple[int, ...]
    """The model's label for each column of the scores. Detections hold these labels themselves."""
    score_threshold: float
    iou_threshold: float | None
    """None: nothing is suppressed, the best scores are the detections."""
    max_detections: int
    best_class_only: bool
    """Whether a box stands for its best class alone."""
    candidates: int | None
    """How many of the best enter suppression, in each of what `candidates_per` names; None: all."""
    candidates_per: str
    levels: tuple[int, ...]
    """Anchors on each level of the pyramid."""
    suppression: str | None = None
    """The op that suppresses in the file, "NonMaxSuppression" or "EfficientNMS_TRT"; None: outside, or not needed."""


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
    """Of the file, and of the weights beside it where there are any."""
    max_absolute_error: dict[str, float]
    """For each output, over the example and random inputs; boxes and scores also where they are not outputs."""
    max_relative_error: dict[str, float]
    """The same over the largest value of the output."""
    seconds: float
    own_outputs: bool
    """Whether the outputs are the model's own; else a part of what it computes."""
    notes: tuple[str, ...] = ()
    part: str = "network"
    target: str = RUNTIME
    initialisers_before: int = 0
    bytes_before: int = 0
    decoding: Decoding | None = None
    """None where the outputs are no boxes and scores."""
    detections: tuple[int, int] | None = None
    """Detections of the model that were compared with those of the file, and how many of them differ."""
    float64_noise: dict[str, float] | None = None
    """What each output loses in PyTorch by being computed in float32: the floor under the relative errors."""

    @property
    def worst(self) -> float:
        """The largest relative error of all outputs."""
        return max(self.max_relative_error.values())


def ports(values: list[onnx.ValueInfoProto], meanings: dict[str, str], default: str) -> tuple[Port, ...]:
    """The ports of these values of a file."""
    found = []
    for value in values:
        kind = value.type.tensor_type
        shape = tuple(dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in kind.shape.dim)
        dtype = onnx.TensorProto.DataType.Name(kind.elem_type)
        found.append(Port(value.name, dtype, shape, meanings.get(value.name, default)))
    return tuple(found)
