"""Trace any detector, find which of its channels stand or fall together, and cut them out exactly."""

from effp_fx.api import prune, trace, verify
from effp_fx.export.handoff import Preprocess, handoff
from effp_fx.export.onnx import export_onnx
from effp_fx.export.tensorrt import check_tensorrt
from effp_fx.models import register_model
from effp_fx.ops import register_op
from effp_fx.plan import plan_of
from effp_fx.session import Session
from effp_fx.store import load, save

__version__ = "0.1.0"

__all__ = [
    "Preprocess",
    "Session",
    "check_tensorrt",
    "export_onnx",
    "handoff",
    "load",
    "plan_of",
    "prune",
    "register_model",
    "register_op",
    "save",
    "trace",
    "verify",
]
