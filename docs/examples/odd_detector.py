"""A detector that nobody knows: its forward takes a dict with a list of images, and returns several things."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import effp_fx


def block(inputs: int, outputs: int, stride: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU())


class Odd(nn.Module):
    """Two maps, a shared head, centres and sizes beside each other; in training the loss is part of what it returns."""

    def __init__(self, width: int = 32, classes: int = 3) -> None:
        super().__init__()
        self.stem, self.down = block(3, width), block(width, 2 * width)
        self.left, self.right = block(2 * width, width, 1), block(2 * width, width, 1)
        self.coarse = block(2 * width, 2 * width)
        self.head = nn.Conv2d(2 * width, classes + 4, 1)

    def forward(self, batch: dict) -> dict:
        x = torch.stack([image - image.mean() for image in batch["images"]])
        fine = self.down(self.stem(x))
        fine = torch.cat([self.left(fine), self.right(fine)], 1) + fine
        maps = [self.head(fine), self.head(self.coarse(fine))]
        scores, boxes = zip(*(m.split([m.shape[1] - 4, 4], 1) for m in maps), strict=True)
        found = {"scores": list(scores), "boxes": [box.sigmoid() for box in boxes], "about": {"maps": len(maps)}}
        return found | {"loss": self.loss(scores, batch["heat"])} if "heat" in batch else found

    def loss(self, scores: tuple[Tensor, ...], heat: Tensor) -> Tensor:
        wanted = [nn.functional.adaptive_max_pool2d(heat, score.shape[-2:]) for score in scores]
        return sum(nn.functional.binary_cross_entropy_with_logits(s, w) for s, w in zip(scores, wanted, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("small.safetensors"))
    args = parser.parse_args()
    model, example = Odd(), ({"images": [torch.rand(3, 64, 64)] * 2},)  # a tuple: the dict is one positional input
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    session = effp_fx.Session(model, optimizer, args.steps, target_flops=0.5, example_inputs=example)
    for _ in range(args.steps):
        heat = (torch.rand(4, 3, 16, 16) > 0.95).float()
        images = nn.functional.interpolate(heat, scale_factor=4) + 0.1 * torch.rand(4, 3, 64, 64)
        optimizer.zero_grad()
        model({"images": list(images), "heat": heat})["loss"].backward()
        optimizer.step()
    effp_fx.save(session.compact(), args.out)
    print(f"{session.flops:.1%} of the FLOPs: {args.out}")


if __name__ == "__main__":
    main()
