"""The detectors whose export is measured: how each is built, at which size, and weights that are worth comparing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import effp_fx
from benchmarks import export_scenes
from effp_fx import models
from effp_fx.cli.arguments import shaped
from effp_fx.inputs import Example
from effp_fx.recalibrate import recalibrate


@dataclass(frozen=True)
class Subject:
    """A detector with random weights, small images where the architecture allows them."""

    name: str
    spec: str
    side: int | None = None
    """Height and width of the images; None: those of the family."""
    peak: float = 4.0
    """Largest output of a head's layers. Where probabilities are a softmax over many classes it takes more for one of
    them to pass a threshold."""
    images: int = 32
    """Scenes that statistics are measured on, the judged ones among them."""
    truth: str = "own"

    def network(self, kind: str) -> tuple[nn.Module, Example]:
        """The detector, "dense" or "pruned" to half its FLOPs, and a scene as its input."""
        torch.manual_seed(0)
        built = models.build(self.spec)
        model, example = built.model, built.example()
        if self.side is not None:
            example = shaped(example, f"1x3x{self.side}x{self.side}", model)
        scenes = export_scenes.draw(self.images, max(export_scenes.side_of(example)))
        pictures = [np.asarray(scene.image) for scene in scenes]
        several = export_scenes.fed(pictures, model, example)
        one = export_scenes.fed(pictures[:1], model, example)
        smooth(model)
        models.randomise(model, 0, example=several)
        if kind == "pruned":
            model = effp_fx.prune(model, one, target_flops=0.5)
            if any("Frozen" in type(module).__name__ for module in model.modules()):
                models.randomise(model, 0, example=several)  # such norms are not recalibrated
        recalibrate(model, [several.args or several.kwargs], like=one)
        settle(model, several, self.peak)
        return model, one


RANDOM = (
    Subject("SSD300-VGG16-BN", "effp:ssd300_vgg16_bn", images=8),
    Subject("SSDlite320", "torchvision:ssdlite320_mobilenet_v3_large"),
    Subject("RetinaNet-R50", "torchvision:retinanet_resnet50_fpn?min_size=128&max_size=128"),
    Subject("FCOS-R50", "torchvision:fcos_resnet50_fpn?min_size=128&max_size=128"),
    Subject("Faster R-CNN-MBV3", "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn?min_size=128&max_size=128"),
    Subject("YOLOv5n", "ultralytics:yolov5n.yaml", 128),
    Subject("YOLOv8n", "ultralytics:yolov8n.yaml", 128),
    Subject("YOLO11n", "ultralytics:yolo11n.yaml", 128),
    Subject("YOLOv10n", "ultralytics:yolov10n.yaml", 128),
    Subject("RT-DETR-R18", "hf:rt_detr?encoder_layers=1&decoder_layers=3&num_labels=80", 128),
    Subject("DETR-R50", "hf:detr?encoder_layers=2&decoder_layers=2&num_labels=80", 128, peak=16.0),
)


def smooth(model: nn.Module) -> None:
    """Move the kernels of convolutions, in place, towards their mean over the window.

    Kernels as they are initialised answer to white noise as much as to pictures, so that a deep network multiplies its
    own rounding errors; those of trained detectors are smooth. The offsets at which deformable attention looks become
    a tenth for the same reason: on maps of noise, a step aside is another value.
    """
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and min(module.kernel_size) > 1:
                module.weight.add_(module.weight.mean((2, 3), keepdim=True), alpha=2.0)
            elif isinstance(module, nn.Linear) and name.endswith("sampling_offsets"):
                module.weight.mul_(0.1)


_CLASSES = ("cls_logits", "classification_head", "cv3", "class_", "score", "heads")
_BINS = ("cv2",)
_BOXES = ("regression_head", "bbox")
"""What the layers of heads are called in these families: scores, bins of a distance, shifts and sizes."""
_BIN_PEAK, _BOX_PEAK = 6.0, 1.0
_BIN_SLOPE = 0.5
"""How much less each bin of a distance weighs than the one before: boxes of some strides, as trained networks have.
Without it every box has half the largest size, and suppression is decided by a thousand near ties."""
_BINS_OF_A_DISTANCE = 16


@dataclass
class _Seen:
    """What came out of a layer, channel by channel, over all calls."""

    total: Tensor
    count: int
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, output: Tensor, axis: int) -> _Seen:
        flat = output.detach().movedim(axis, 0).flatten(1)
        return cls(flat.sum(1), flat.shape[1], flat.amin(1), flat.amax(1))

    def joined(self, other: _Seen) -> _Seen:
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        return _Seen(self.total + other.total, self.count + other.count, low, high)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def peak(self) -> float:
        """The farthest from the mean."""
        return float(torch.maximum(self.high - self.mean, self.mean - self.low).max()) or 1.0


def settle(model: nn.Module, example: Example, peak: float) -> None:
    """Shift and scale, in place, the layers of the heads: mean 0 in each channel, the largest output at most `peak`.

    With random weights all anchors score the same class, logits of fifty and more have sigmoids of 1 exactly, and
    among those of a tenth none passes a threshold: detections would be none, or differ by which of equal scores
    comes first. A layer that follows another of these sees what is settled already.
    """
    seen: dict[nn.Module, _Seen] = {}

    def watch(module: nn.Module, _: object, output: Tensor) -> Tensor:
        axis = 1 if isinstance(module, nn.Conv2d) else -1
        now = _Seen.of(output, axis)
        seen[module] = seen[module].joined(now) if module in seen else now
        shape = [-1 if place == axis % output.ndim else 1 for place in range(output.ndim)]
        return (output - now.mean.reshape(shape)) * (peaks[module] / now.peak)

    peaks = dict(_heads(model, peak))
    handles = [module.register_forward_hook(watch) for module in peaks]
    with torch.no_grad():
        model(*example.args, **example.kwargs)
        for handle in handles:
            handle.remove()
        for module, found in seen.items():
            factor = peaks[module] / found.peak
            module.get_parameter("bias").sub_(found.mean).mul_(factor)
            module.get_parameter("weight").mul_(factor)
            if peaks[module] == _BIN_PEAK:
                slope = -_BIN_SLOPE * torch.arange(_BINS_OF_A_DISTANCE)
                module.get_parameter("bias").add_(slope.repeat(len(found.mean) // _BINS_OF_A_DISTANCE))


def _heads(model: nn.Module, peak: float) -> Iterator[tuple[nn.Module, float]]:
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or module.bias is None:
            continue
        if any(word in name for word in _BOXES):
            yield module, _BOX_PEAK
        elif any(word in name for word in _BINS):
            yield module, _BIN_PEAK
        elif any(word in name for word in _CLASSES):
            yield module, peak
