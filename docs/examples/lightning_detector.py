"""A detector in a LightningModule: one callback more, and everything the Trainer does stays as it was."""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer

import effp_fx
from effp_fx import data
from effp_fx.integrations.lightning import EFFPCallback


class Detector(LightningModule):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch, _):
        images, targets = batch
        losses = self.model(images, targets)
        self.log_dict(losses, batch_size=len(images))
        return sum(losses.values())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
        steps = self.trainer.estimated_stepping_batches
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs or steps)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a VOC, COCO or YOLO folder")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--resume", help="a checkpoint of Lightning's")
    parser.add_argument("--out", type=Path, default=Path("run"))
    args = parser.parse_args()

    images = data.open_dataset(args.data, "train", transforms=data.light_augmentation(args.size))
    batches = data.loader(images, args.batch, shuffle=True, drop_last=True)
    spec = f"effp:ssd_small?num_classes={len(images.classes) + 1}&size={args.size}"
    module = Detector(effp_fx.models.build(spec).model.train())

    callback = EFFPCallback(target_flops=0.5, target_params=0.5)
    trainer = Trainer(
        max_epochs=args.epochs, callbacks=[callback], precision=args.precision, default_root_dir=args.out, logger=False
    )
    trainer.fit(module, batches, ckpt_path=args.resume)
    small = callback.compact()

    effp_fx.save(small, args.out / "small.safetensors")  # effp_fx.load needs no model: the file says how it was built
    print(f"{callback.session.flops:.1%} of the FLOPs, {callback.session.params:.1%} of the parameters: {args.out}")


if __name__ == "__main__":
    main()
