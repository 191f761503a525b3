"""Accelerate: several processes, accumulation, its checkpoints; the session is one more thing that it saves.

Run it as it is, with `accelerate launch`, or with `torchrun --nproc-per-node 2 accelerate_ddp.py ...`.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator

import effp_fx
from effp_fx import data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a VOC, COCO or YOLO folder")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("run"))
    args = parser.parse_args()

    accelerator = Accelerator(gradient_accumulation_steps=args.accumulate)
    images = data.open_dataset(args.data, "train", transforms=data.as_it_is(args.size))
    batches = torch.utils.data.DataLoader(images, args.batch, shuffle=True, drop_last=True, collate_fn=data.collate)
    model = effp_fx.models.build(f"effp:ssd_small?num_classes={len(images.classes) + 1}&size={args.size}").model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    model, optimizer, batches = accelerator.prepare(model.train(), optimizer, batches)

    steps = args.epochs * -(-len(batches) // args.accumulate)  # of this process; the end of an epoch steps as well
    session = effp_fx.Session(model, optimizer, steps, target_flops=0.5, target_params=0.5)
    accelerator.register_for_checkpointing(session)
    begin, places = 0, sorted(args.out.glob("epoch*"))
    if places:
        accelerator.load_state(str(places[-1]))
        begin = len(places)
    for epoch in range(begin, args.epochs):
        for pictures, targets in batches:
            with accelerator.accumulate(model):
                accelerator.backward(sum(model(pictures, targets).values()))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 10.0)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.save_state(str(args.out / f"epoch{epoch:04}"))
    small = session.compact()
    if accelerator.is_main_process:
        effp_fx.save(small, args.out / "small.safetensors")
        print(f"{session.flops:.1%} of the FLOPs, {session.params:.1%} of the parameters: {args.out}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
