"""torchvision's SSD300 from scratch on a VOC folder, pruned to half its FLOPs and parameters while it trains."""

import argparse
from pathlib import Path

import torch
import torchvision
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

import effp_fx
from effp_fx import data


def detector(classes: int, tiny: bool) -> torch.nn.Module:
    """SSD300 on VGG-16; `tiny` is the same head on two small maps, to try the script out."""
    if not tiny:
        return torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=classes)
    stages = [
        torch.nn.Sequential(torch.nn.Conv2d(i, o, 3, 2, 1), torch.nn.BatchNorm2d(o), torch.nn.ReLU())
        for i, o in ((3, 16), (16, 32), (32, 32))
    ]
    backbone = torchvision.models._utils.IntermediateLayerGetter(torch.nn.Sequential(*stages), {"1": "0", "2": "1"})
    backbone.out_channels = [32, 32]
    boxes = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.5, 0.9], steps=[4, 8])
    return SSD(backbone, boxes, (64, 64), classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a VOC folder")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("small.safetensors"))
    args = parser.parse_args()

    size = 64 if args.tiny else 300
    images = data.open_dataset(args.data, "train", transforms=data.ssd_augmentation(size))
    batches = data.loader(images, args.batch, shuffle=True)
    model = detector(len(images.classes) + 1, args.tiny).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    steps = args.epochs * len(batches)
    session = effp_fx.Session(model, optimizer, steps, target_flops=0.5, target_params=0.5)
    for _ in range(args.epochs):
        for pictures, targets in batches:
            loss = sum(model(pictures, targets).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
    small = session.compact()
    effp_fx.save(small, args.out)
    print(f"{session.flops:.1%} of the FLOPs, {session.params:.1%} of the parameters: {args.out}")


if __name__ == "__main__":
    main()
