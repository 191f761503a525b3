"""The single training session of EFFP: indicator, prune, regrow, hold; knows no detector, data or ONNX."""

from effp_fx.session.history import Update
from effp_fx.session.session import Session

__all__ = ["Session", "Update"]
