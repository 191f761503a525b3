"""DETR under Hugging Face's Trainer, of which the ResNet backbone alone is pruned: everything else is in `ignore`."""

import argparse

import torch
import transformers

import effp_fx
from effp_fx import data
from effp_fx.integrations.transformers import EFFPCallback


def collated(samples: list[tuple]) -> dict:
    """Images stacked, boxes as centre and size in parts of the image: what DETR's loss takes."""
    labels = []
    for image, target in samples:
        boxes = target["boxes"] / image.shape[-1]
        middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        labels.append({"class_labels": target["labels"] - 1, "boxes": torch.cat([middle, size], 1)})
    return {"pixel_values": torch.stack([image for image, _ in samples]), "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a VOC, COCO or YOLO folder")
    parser.add_argument("--epochs", type=float, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--width", type=int, default=256, help="of the transformer")
    parser.add_argument("--out", default="out")
    args = parser.parse_args()

    images = data.open_dataset(args.data, "train", transforms=data.as_it_is(args.size))
    backbone = transformers.ResNetConfig(layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[64, 128, 256, 512])
    config = transformers.DetrConfig(
        backbone_config=backbone, d_model=args.width, num_labels=len(images.classes), encoder_layers=2, decoder_layers=2
    )
    model = transformers.DetrForObjectDetection(config)

    parts = [name for name, _ in model.named_children() if name != "model"]
    others = [f"model.{name}" for name, _ in model.model.named_children() if name != "backbone"]
    example = {"pixel_values": torch.rand(1, 3, args.size, args.size)}
    callback = EFFPCallback(target_flops=0.6, ignore=[*parts, *others], example_inputs=example)
    arguments = transformers.TrainingArguments(
        args.out, num_train_epochs=args.epochs, per_device_train_batch_size=args.batch, remove_unused_columns=False
    )
    trainer = transformers.Trainer(model, arguments, collated, images, callbacks=[callback])
    trainer.train()
    small = callback.compact()

    small.save_pretrained(args.out)  # the configuration, for the dense model that the next file is loaded onto
    effp_fx.save(small, f"{args.out}/small.safetensors")
    print(f"{callback.session.flops:.1%} of the FLOPs: {args.out}/small.safetensors")


if __name__ == "__main__":
    main()
