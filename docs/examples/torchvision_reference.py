"""A torchvision detector in the manner of its reference training: linear warm-up, step decay, resume."""

import argparse
from pathlib import Path

import torch
import torchvision

import effp_fx
from effp_fx import data


def train_one_epoch(model, optimizer, batches, epoch):
    model.train()
    rates, count = torch.optim.lr_scheduler, max(min(1000, len(batches) - 1), 1)
    warm_up = rates.LinearLR(optimizer, start_factor=1 / 1000, total_iters=count) if epoch == 0 else None
    for images, targets in batches:
        losses = sum(model(images, targets).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        if warm_up is not None:
            warm_up.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a VOC, COCO or YOLO folder")
    parser.add_argument("--model", default="ssdlite320_mobilenet_v3_large")
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()

    images = data.open_dataset(args.data, "train", transforms=data.light_augmentation())
    batches = data.loader(images, args.batch, shuffle=True, drop_last=True)
    options = {"weights": None, "weights_backbone": None, "num_classes": len(images.classes) + 1}
    model = torchvision.models.get_model(args.model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    decay = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[16, 22])

    session = effp_fx.Session(model, optimizer, args.epochs * len(batches), target_flops=0.5)
    parts = {"model": model, "optimizer": optimizer, "lr_scheduler": decay, "effp": session}
    checkpoint, begin = args.out / "checkpoint.pth", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        begin = saved["epoch"] + 1
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for epoch in range(begin, args.epochs):
        train_one_epoch(model, optimizer, batches, epoch)
        decay.step()
        torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, checkpoint)
    effp_fx.save(session.compact(), args.out / "small.safetensors")
    print(f"{session.flops:.1%} of the FLOPs, {session.params:.1%} of the parameters: {args.out}/small.safetensors")


if __name__ == "__main__":
    main()
