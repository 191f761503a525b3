"""Model families: how to build a model by its name, feed it, and take a training loss from it."""

from effp_fx.models.detection import Detection, Field
from effp_fx.models.family_timm import TimmAdapter
from effp_fx.models.family_tiny import TinyAdapter
from effp_fx.models.family_torchvision import TorchvisionAdapter
from effp_fx.models.family_transformers import TransformersAdapter
from effp_fx.models.family_ultralytics import UltralyticsAdapter
from effp_fx.models.randomise import randomise
from effp_fx.models.registry import Adapter, Built, adapter_for, build, example_for, names, register_model

__all__ = [
    "Adapter",
    "Built",
    "Detection",
    "Field",
    "adapter_for",
    "build",
    "example_for",
    "names",
    "randomise",
    "register_model",
]

for _adapter in (TorchvisionAdapter(), UltralyticsAdapter(), TimmAdapter(), TransformersAdapter(), TinyAdapter()):
    if _adapter.name not in names():  # reloading this module must not fail
        register_model(_adapter)
