"""Networks, images and losses of the integrations' table: torchvision, timm and transformers alone, no effp_fx."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

IMAGES, BATCH, CLASSES = 8, 2, 3
Sample = tuple[Tensor, dict[str, Tensor]]


def ssd() -> nn.Module:
    """torchvision's SSD, its losses and its decoding, on three stages that batch norm follows."""
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    widths = ((3, 16), (16, 32), (32, 32))
    stages = [nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in widths]
    backbone: Any = IntermediateLayerGetter(nn.Sequential(*stages), {"1": "0", "2": "1"})
    backbone.out_channels = [32, 32]
    return SSD(backbone, DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.5, 0.9], steps=[4, 8]), (64, 64), CLASSES)


def ssdlite() -> nn.Module:
    """torchvision's SSDlite320 with MobileNetV3-Large, whole."""
    import torchvision

    build = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    model: nn.Module = build(weights=None, weights_backbone=None, num_classes=CLASSES)
    return model


def resnet() -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("resnet18", num_classes=CLASSES)
    return model


def detr() -> nn.Module:
    """DETR on a ResNet, narrow."""
    import transformers

    layers = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(**layers, out_features=["stage4"]),
        **sizes,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=8,
        num_labels=CLASSES,
    )
    return transformers.DetrForObjectDetection(config)


def rt_detr() -> nn.Module:
    """RT-DETR on its own ResNet, narrow."""
    import transformers

    layers = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    sizes = {"encoder_hidden_dim": 32, "encoder_in_channels": [32, 32, 64], "encoder_ffn_dim": 64, "d_model": 32}
    config = transformers.RTDetrConfig(
        backbone_config=transformers.RTDetrResNetConfig(**layers, out_features=["stage2", "stage3", "stage4"]),
        **sizes,
        decoder_in_channels=[32, 32, 32],
        decoder_layers=1,
        decoder_ffn_dim=64,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=10,
        num_denoising=0,
        num_labels=CLASSES,
    )
    return transformers.RTDetrForObjectDetection(config)


NETS: dict[str, Callable[[], nn.Module]] = {
    "ssd": ssd, "ssdlite": ssdlite, "resnet": resnet, "detr": detr, "rt_detr": rt_detr,
}  # fmt: skip
TITLES = {
    "ssd": "torchvision SSD, three stages",
    "ssdlite": "torchvision SSDlite320 MobileNetV3",
    "resnet": "timm resnet18",
    "detr": "DETR, ResNet backbone",
    "rt_detr": "RT-DETR, ResNet backbone",
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name]().train()


class Images(Dataset[Sample]):
    """The same images and boxes each time; `die_at` kills the process when so many have been read."""

    def __init__(self, die_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.rand(IMAGES, 3, 64, 64, generator=generator)
        self.read, self.die_at = 0, die_at

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Sample:
        self.read += 1
        if self.read == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        boxes = torch.tensor([[8.0, 8.0, 30.0, 40.0], [20.0 + index, 16.0, 60.0, 56.0]])
        return self.pixels[index], {"boxes": boxes, "labels": torch.tensor([1, 2])}


def collated(name: str, samples: list[Sample]) -> Any:
    """A batch as that network takes it."""
    images, targets = zip(*samples, strict=True)
    if name.startswith("ssd"):
        return list(images), list(targets)
    if name == "resnet":
        return torch.stack(images), torch.arange(len(images)) % CLASSES
    labels = []
    for target in targets:
        boxes = target["boxes"] / 64
        middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        labels.append({"class_labels": target["labels"] - 1, "boxes": torch.cat([middle, size], 1)})
    return {"pixel_values": torch.stack(images), "labels": labels}


def loss(name: str, model: nn.Module, samples: Any) -> Tensor:
    if name == "resnet":
        return nn.functional.cross_entropy(model(samples[0]), samples[1])
    total: Tensor = sum(model(*samples).values())
    return total


def example(name: str) -> Any:
    """Inputs for eval mode, as `model(*args)` takes them."""
    pixels = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64).roll(7, 3)
    return ([pixels[0]],) if name.startswith("ssd") else (pixels,)


@torch.no_grad()
def outputs(name: str, model: nn.Module) -> float:
    """One number that all outputs in eval mode go into."""
    was = model.training
    found = model.eval()(*example(name))
    model.train(was)
    parts = (
        [found]
        if isinstance(found, Tensor)
        else [found[0]["scores"]]
        if name.startswith("ssd")
        else [found.logits, found.pred_boxes]
    )
    return float(sum(part.double().square().sum() for part in parts))


def lightning_module(name: str) -> Any:
    """The class of a LightningModule around that network."""
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self, network: nn.Module | None = None) -> None:
            super().__init__()
            self.network = build(name) if network is None else network

        def training_step(self, batch: Any, _: int) -> Tensor:
            return loss(name, self.network, batch)

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("score", outputs(name, self.network), batch_size=BATCH)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    return Module
