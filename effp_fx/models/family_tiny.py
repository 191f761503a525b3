"""The `effp:` family: our own SSDs and YOLO-like net, and tiny nets with one hard case each to try everything on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from effp_fx.inputs import Example, random_input
from effp_fx.models import tiny, tiny_attention, tiny_odd
from effp_fx.models.detection import Detection
from effp_fx.models.family_torchvision import (
    detector_example,
    detector_meaning,
    detector_train_example,
    let_scores_pass,
)
from effp_fx.models.registry import Adapter, reference_tensor
from effp_fx.models.spec import unknown_name, wrong_options
from effp_fx.models.ssd300 import SSD300
from effp_fx.models.ssd300_resnet import ssd300_resnet50
from effp_fx.models.ssd300_vgg import ssd300_vgg16_bn
from effp_fx.models.ssd_small import SSDSmall
from effp_fx.models.tiny import TinyNet
from effp_fx.models.yolo_small import YoloSmall

TINY: dict[str, type[TinyNet]] = {**tiny.NETS, **tiny_odd.NETS, **tiny_attention.NETS}
"""Name in a spec -> class; its docstring says what is hard about it."""


DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "ssd300_vgg16_bn": ssd300_vgg16_bn,
    "ssd300_resnet50": ssd300_resnet50,
    "ssd_small": SSDSmall,
    "yolo_small": YoloSmall,
}
"""Name in a spec -> builder; its parameters are the options. All have the interface of torchvision's detectors."""

_DETECTORS = (SSD300, SSDSmall, YoloSmall)


class TinyAdapter(Adapter):
    """``effp:NAME``: a detector, or a tiny net whose ``width`` (a multiple of 8, default 16) scales every layer."""

    name: ClassVar[str] = "effp"

    def build(self, name: str, **options: Any) -> nn.Module:
        """Build the net ``name``; ModelNameError for unknown names and options."""
        nets: dict[str, Callable[..., nn.Module]] = {**TINY, **DETECTORS}
        if name not in nets:
            raise unknown_name(self.name, name, nets)
        try:
            return nets[name](**options).eval()
        except (TypeError, ValueError) as error:
            raise wrong_options(self.name, name, error) from error

    def knows(self, model: nn.Module) -> bool:
        """Say whether it is one of ours."""
        return isinstance(model, (TinyNet, *_DETECTORS))

    def example(self, model: nn.Module) -> Example:
        """Return an image for a detector; else inputs of the shapes that the class lists, a batch of two."""
        if isinstance(model, _DETECTORS):
            return detector_example(model)
        assert isinstance(model, TinyNet)
        like = reference_tensor(model)
        return Example(tuple(random_input(shape, like=like, seed=i) for i, shape in enumerate(model.input_shapes)))

    def train_example(self, model: nn.Module) -> Example | None:
        """Return two images with two boxes each for a detector; the others take in training what they take in eval."""
        return detector_train_example(model) if isinstance(model, _DETECTORS) else None

    def detection(self, model: nn.Module) -> Detection | None:
        """Say how a detector's output is read; the tiny nets detect nothing."""
        return detector_meaning(model, "image") if isinstance(model, _DETECTORS) else None

    def let_all_pass(self, model: nn.Module) -> None:
        """Let every score pass a detector's threshold."""
        if isinstance(model, _DETECTORS):
            let_scores_pass(model)
