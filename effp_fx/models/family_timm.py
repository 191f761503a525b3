"""timm: any of its architectures by name, without weights."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from effp_fx.inputs import Example, random_input
from effp_fx.models.registry import Adapter, image_channels, is_from, reference_tensor
from effp_fx.models.spec import import_family, unknown_name, wrong_options

_LARGEST_SIDE = 224  # nets that take any size are traced at this one at most


class TimmAdapter(Adapter):
    """Any name of ``timm.list_models()``; options are those of ``timm.create_model``, ``pretrained=true`` included."""

    name: ClassVar[str] = "timm"

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build ``name`` with random weights; ModelNameError for unknown names and options."""
        timm = import_family("timm", "timm")
        if not timm.is_model(name):
            raise unknown_name(self.name, name, timm.list_models())
        try:
            model: nn.Module = timm.create_model(name, **{"pretrained": False} | options)
        except (TypeError, ValueError) as error:
            raise wrong_options(self.name, name, error) from error
        return model.eval()

    def knows(self, model: nn.Module) -> bool:
        """Say whether the class comes from ``timm``."""
        return is_from(model, "timm")

    def example(self, model: nn.Module) -> Example:
        """Return one image of the size in the model's own configuration, 224 at most unless its size is fixed."""
        return Example((random_input((1, *_image_shape(model)), like=reference_tensor(model)),))

    def train_example(self, model: nn.Module) -> Example:
        """Return two images, since batch norm over 1x1 maps needs more than one."""
        return Example((random_input((2, *_image_shape(model)), like=reference_tensor(model)),))


def _image_shape(model: nn.Module) -> tuple[int, int, int]:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    configured, height, width = config.get("input_size", (3, _LARGEST_SIDE, _LARGEST_SIDE))
    if not config.get("fixed_input_size", False):
        height, width = min(height, _LARGEST_SIDE), min(width, _LARGEST_SIDE)
    channels = image_channels(model)  # not the configured number: create_model(in_chans=1) leaves that at 3
    if channels in (4 * configured, 16 * configured):  # a stem that moves space to depth before its first convolution
        channels = configured
    return channels, int(height), int(width)
