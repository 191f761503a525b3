"""INT8: quantises an ONNX file with ONNX Runtime's static quantiser, and says what it cost in mAP on a data set.

Quantise and dequantise nodes (QDQ) are written around convolutions and matrix products with constant weights: weights
per output channel, activations per tensor, both symmetric, biases in float. That is what TensorRT reads as INT8 layers.
All else, the decoding of boxes included, stays in float; so do convolutions of a single output channel, such as the
expectation over the bins of a distance, whose rounding moves every box.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from effp_fx.errors import ExportError
from effp_fx.evaluate.detection import DetectionScores
from effp_fx.export import exporters, onnx_file

METHODS = {
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
    "minmax": CalibrationMethod.MinMax,
}
_KINDS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "AddQDQPairToWeight": False,
    "QuantizeBias": False,
    "MatMulConstBOnly": True,
}
Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Int8Report:
    """A quantised file beside the one in float."""

    path: Path
    method: str
    images: int
    """That the ranges were measured on."""
    layers: int
    """Convolutions and matrix products whose inputs are quantised."""
    layers_in_float: int
    nodes: int
    nodes_float: int
    bytes: int
    bytes_float: int
    scores: DetectionScores | None = None
    """On the data set; None: there was none to judge by."""
    scores_float: DetectionScores | None = None


def quantise(source: Path, path: Path, feeds: Iterable[Feed], method: str = "entropy") -> Int8Report:
    """Write the network of `source` with INT8 layers to `path`, ranges measured on `feeds`.

    Args:
        source: an ONNX file of opset 13 or later.
        path: the file to write.
        feeds: what the network is fed with, input by name; some dozen pictures of those it will see.
        method: "entropy", "percentile" (99.999) or "minmax".

    Raises:
        ExportError: the method is not known, nothing was fed, or the quantiser fails; nothing is written then.
    """
    if method not in METHODS:
        raise ExportError(f"there is no calibration {method!r}", expected=", ".join(METHODS))
    reader = _Reader(feeds)
    model = onnx.load(str(source))
    with tempfile.TemporaryDirectory(prefix="effp_fx-") as folder:
        made = Path(folder) / path.name
        _run(source, made, reader, method, _kept_in_float(model))
        onnx_file.check(made, exporters.opset_of(model))
        result = onnx.load(str(made), load_external_data=False)
        size = onnx_file.put(made, path)
    layers = _quantised(result)
    kinds = Counter(node.op_type for node in result.graph.node)
    return Int8Report(
        path=path,
        method=method,
        images=reader.count,
        layers=layers,
        layers_in_float=sum(kinds[kind] for kind in _KINDS) - layers,
        nodes=len(result.graph.node),
        nodes_float=len(model.graph.node),
        bytes=size,
        bytes_float=source.stat().st_size,
    )


def _run(source: Path, made: Path, reader: _Reader, method: str, in_float: list[str]) -> None:
    options: dict[str, Any] = dict(_OPTIONS)
    try:
        with exporters.quiet():
            quantize_static(
                str(source),
                str(made),
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_KINDS,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=in_float,
                calibrate_method=METHODS[method],
                extra_options=options,
            )
    except Exception as error:  # the quantiser lets out what numpy, onnx and ONNX Runtime raise
        if not reader.count:
            raise ExportError("there is nothing to calibrate with", expected="some pictures") from error
        raise ExportError(
            "the network cannot be quantised", seen=f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        ) from error


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # a class without types
    """Hands the feeds to the quantiser one by one."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)
        self.count = 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next feed, None after the last."""
        feed = next(self._feeds, None)
        if feed is None:
            return None
        self.count += 1
        return {name: np.ascontiguousarray(value) for name, value in feed.items()}


def _kept_in_float(model: onnx.ModelProto) -> list[str]:
    """Convolutions of one output channel."""
    shapes = {item.name: tuple(item.dims) for item in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and shapes.get(node.input[1], (0,))[0] == 1 and node.name
    ]


def _quantised(model: onnx.ModelProto) -> int:
    """Layers whose first input comes out of a DequantizeLinear."""
    made = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.op_type in _KINDS and node.input[0] in made for node in model.graph.node)
