"""A static check of ONNX files against releases of TensorRT and the boards they run on; needs onnx alone."""

from effp_fx.export.tensorrt.check import CheckedNode, TensorRTReport, check_tensorrt
from effp_fx.export.tensorrt.findings import Finding, Verdict
from effp_fx.export.tensorrt.tables import Target, target, target_names

__all__ = [
    "CheckedNode",
    "Finding",
    "Target",
    "TensorRTReport",
    "Verdict",
    "check_tensorrt",
    "target",
    "target_names",
]
