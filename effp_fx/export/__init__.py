"""From a PyTorch model to an ONNX file that was run and compared before it was handed out."""

from effp_fx.export.onnx import export_onnx
from effp_fx.export.report import TARGETS, Decoding, ExportReport, Port

__all__ = ["TARGETS", "Decoding", "ExportReport", "Port", "export_onnx"]
