"""An Ultralytics network in a loop of your own: its loss, your optimizer, and two lines for effp_fx."""

import argparse
from pathlib import Path

import torch
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

import effp_fx
from effp_fx import data


def batch_of(pictures: list[torch.Tensor], targets: list[dict]) -> dict[str, torch.Tensor]:
    """A batch as Ultralytics' losses take it: boxes as centre and size, in parts of the image, all in one tensor."""
    height, width = pictures[0].shape[1:]
    boxes = torch.cat([target["boxes"] for target in targets]) / torch.tensor([width, height, width, height])
    return {
        "img": torch.stack(list(pictures)),
        "batch_idx": torch.cat([torch.full((len(t["labels"]),), float(i)) for i, t in enumerate(targets)]),
        "cls": torch.cat([target["labels"] - 1 for target in targets]).float()[:, None],
        "bboxes": torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a VOC, COCO or YOLO folder")
    parser.add_argument("--model", default="yolov8n.yaml")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--out", type=Path, default=Path("small.safetensors"))
    args = parser.parse_args()

    images = data.open_dataset(args.data, "train", transforms=data.light_augmentation(args.size))
    batches = data.loader(images, args.batch, shuffle=True)
    model = DetectionModel(args.model, nc=len(images.classes), verbose=False).train()
    model.args = get_cfg()  # where its loss finds the weights of its terms
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    session = effp_fx.Session(model, optimizer, args.epochs * len(batches), target_flops=0.5)
    for _ in range(args.epochs):
        for pictures, targets in batches:
            loss, _ = model.loss(batch_of(pictures, targets))
            optimizer.zero_grad()
            loss.sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
    small = session.compact()
    effp_fx.save(small, args.out)
    print(f"{session.flops:.1%} of the FLOPs, {session.params:.1%} of the parameters: {args.out}")


if __name__ == "__main__":
    main()
