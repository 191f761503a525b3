"""The detectors whose export is measured: how each is built, at which size, and scores that are worth comparing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from effp_fx import models
from effp_fx.cli.arguments import shaped
from effp_fx.export import parity
from effp_fx.inputs import Example, repeat_batch

_IMAGES = 6
"""That statistics are measured on: those of one small image alone would blow up every other."""


@dataclass(frozen=True)
class Subject:
    """A detector, small images where the architecture allows them."""

    name: str
    spec: str
    side: int | None = None
    """Height and width of the images; None: those of the family."""

    def build(self, seed: int = 0) -> tuple[nn.Module, Example]:
        """The model with random weights that give detections, and its inputs."""
        torch.manual_seed(seed)
        built = models.build(self.spec)
        example = built.example()
        if self.side is not None:
            example = shaped(example, f"1x3x{self.side}x{self.side}", built.model)
        several = parity.other_values(repeat_batch(example, _IMAGES))
        models.randomise(built.model, seed, example=several)
        cool(built.model, several)
        return built.model, example


SUBJECTS = (
    Subject("SSD300-VGG16-BN", "effp:ssd300_vgg16_bn"),
    Subject("SSDlite320", "torchvision:ssdlite320_mobilenet_v3_large"),
    Subject("RetinaNet-R50", "torchvision:retinanet_resnet50_fpn?min_size=128&max_size=128"),
    Subject("FCOS-R50", "torchvision:fcos_resnet50_fpn?min_size=128&max_size=128"),
    Subject("Faster R-CNN-MBV3", "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn?min_size=128&max_size=128"),
    Subject("YOLOv5n", "ultralytics:yolov5n.yaml", 128),
    Subject("YOLOv8n", "ultralytics:yolov8n.yaml", 128),
    Subject("YOLO11n", "ultralytics:yolo11n.yaml", 128),
    Subject("YOLOv10n", "ultralytics:yolov10n.yaml", 128),
    Subject("RT-DETR-R18", "hf:rt_detr?encoder_layers=1&decoder_layers=3", 128),
    Subject("DETR-R50", "hf:detr?encoder_layers=2&decoder_layers=2", 128),
)


_HEADS = ("cls_logits", "classification_head", "regression_head", "bbox", "cv2", "cv3", "class_", "score", "heads")
"""What the last layers of these families are called, and others may be too."""


def cool(model: nn.Module, example: Example, largest: float = 6.0) -> None:
    """Scale, in place, layers of the heads down so that their outputs stay within +-6 on the example.

    Random weights give logits of fifty and more, whose sigmoids are all 1 exactly: detections would then differ by
    which of the equal scores comes first.
    """
    peaks: dict[nn.Module, float] = {}

    def watch(module: nn.Module, _: object, output: torch.Tensor) -> None:
        peaks[module] = max(peaks.get(module, 0.0), float(output.detach().abs().max()))

    handles = [
        module.register_forward_hook(watch)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None and any(w in name for w in _HEADS)
    ]
    with torch.no_grad():
        model(*example.args, **example.kwargs)
        for module, peak in peaks.items():
            if peak > largest:
                for value in module.parameters():
                    value.mul_(largest / peak)
    for handle in handles:
        handle.remove()
