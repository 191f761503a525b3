"""From a PyTorch model to an ONNX file that was run and compared before it was handed out."""

from effp_fx.export.onnx import ExportReport, Port, export_onnx

__all__ = ["ExportReport", "Port", "export_onnx"]
