"""timm's own parts in a training loop: its model, optimizer, schedule, mixup and moving average, and two lines."""

import argparse
from pathlib import Path

import timm
import torch
import torchvision
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

import effp_fx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a folder with one folder of images for each class")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--opt", default="lamb")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", type=Path, default=Path("small.safetensors"))
    args = parser.parse_args()

    images = torchvision.datasets.ImageFolder(args.data, create_transform(args.size, is_training=True))
    batches = torch.utils.data.DataLoader(images, args.batch, shuffle=True, drop_last=True)
    model = timm.create_model(args.model, num_classes=len(images.classes))
    average = ModelEmaV3(model, decay=0.999, use_warmup=True)
    optimizer = create_optimizer_v2(model, opt=args.opt, lr=1e-3, weight_decay=0.02)
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", args.epochs, warmup_epochs=args.epochs // 20)

    session = effp_fx.Session(model, optimizer, args.epochs * len(batches), target_flops=0.5)
    for epoch in range(args.epochs):
        model.train()
        for pictures, labels in batches:
            loss = torch.nn.functional.cross_entropy(model(pictures), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(model, step=session.step)
        scheduler.step(epoch + 1)
    small = session.compact(average.module)  # of the moving average, which is what one validates
    effp_fx.save(small, args.out)
    print(f"{session.flops:.1%} of the FLOPs, {session.params:.1%} of the parameters: {args.out}")


if __name__ == "__main__":
    main()
