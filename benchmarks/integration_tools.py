"""Trains one network in one tool, as that tool's user does, with a session in it; resumes where a checkpoint lies.

Run by benchmarks/integrations.py in processes of its own: `python -m benchmarks.integration_tools TOOL NET FOLDER
[--die-at IMAGES]`. Writes `end.pt` (the trained weights) and `cells.json` into the folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

import effp_fx
from benchmarks import integration_nets as nets
from effp_fx import Session

EPOCHS = 5
SESSION: dict[str, Any] = {"target_flops": 0.6, "start": 0.2, "end": 0.6, "updates": 4}
"""Short runs: four updates; 0.6 because the narrow DETRs' attention cannot go to a half."""


@dataclass
class Trained:
    """What a tool's run left."""

    network: nn.Module
    session: Session
    small: nn.Module
    checkpoint: Path
    validate: Callable[[nn.Module], float]
    """In the tool's own way, one number."""


def _rank() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _loader(name: str, die_at: int | None) -> DataLoader[Any]:
    """Of several processes each has its own images."""
    rank, world = _rank()
    own = Subset(nets.Images(die_at), range(rank, nets.IMAGES, world))
    return DataLoader(own, nets.BATCH, collate_fn=partial(nets.collated, name))


def lightning(name: str, folder: Path, die_at: int | None) -> Trained:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from effp_fx.integrations.lightning import EFFPCallback

    last = folder / "last.ckpt"
    module = nets.lightning_module(name)()
    callback = EFFPCallback(**SESSION, example_inputs=nets.example(name))
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[callback, ModelCheckpoint(folder, save_last=True)], **quiet
    )
    trainer.fit(module, _loader(name, die_at), ckpt_path=str(last) if last.exists() else None, weights_only=True)

    def validate(network: nn.Module) -> float:
        judge = Trainer(accelerator="cpu", **quiet)
        found = judge.validate(type(module)(network), _loader(name, None), verbose=False)
        return float(found[0]["score"])

    assert callback.session is not None
    return Trained(module.network, callback.session, callback.compact(), last, validate)


def transformers(name: str, folder: Path, die_at: int | None) -> Trained:
    from transformers import Trainer

    from effp_fx.integrations.transformers import EFFPCallback

    callback = EFFPCallback(**SESSION, example_inputs=nets.example(name))
    model, arguments = _trainer(name, folder, die_at, [callback])

    def validate(network: nn.Module) -> float:
        judge = Trainer(network, arguments, partial(nets.collated, name), eval_dataset=nets.Images())
        return float(judge.evaluate()["eval_loss"])

    assert callback.session is not None
    return Trained(model, callback.session, callback.compact(), folder / f"checkpoint-{_steps()}", validate)


def _trainer(name: str, folder: Path, die_at: int | None, callbacks: list[Any]) -> tuple[nn.Module, Any]:
    """Train in Hugging Face's Trainer; (model, arguments)."""
    from transformers import Trainer, TrainingArguments

    model = nets.build(name)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=nets.BATCH,
        remove_unused_columns=False,
        save_strategy="epoch",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, partial(nets.collated, name), nets.Images(die_at), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    return model, arguments


def control(name: str, folder: Path, die_at: int | None) -> nn.Module:
    """The same in Hugging Face's Trainer without a session: whether that resumes to the last bit."""
    return _trainer(name, folder, die_at, [])[0]


def timm(name: str, folder: Path, die_at: int | None) -> Trained:
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3

    model = nets.build(name)
    optimizer = create_optimizer_v2(model, opt="lamb", lr=1e-3, weight_decay=0.02)
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", EPOCHS)
    average = ModelEmaV3(model, decay=0.9)
    session = Session(model, optimizer, _steps(), example_inputs=nets.example(name), **SESSION)
    parts = {"state_dict": model, "optimizer": optimizer, "effp": session, "average": average.module}
    _own_loop(name, model, optimizer, parts, folder, die_at, lambda: average.update(model), scheduler.step)
    return Trained(model, session, session.compact(), folder / "last.pt", partial(_score, name))


def torchvision(name: str, folder: Path, die_at: int | None) -> Trained:
    model = nets.build(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3])
    session = Session(model, optimizer, _steps(), example_inputs=nets.example(name), **SESSION)
    parts = {"state_dict": model, "optimizer": optimizer, "effp": session, "rate": rate}
    _own_loop(name, model, optimizer, parts, folder, die_at, lambda: None, lambda _: rate.step())
    return Trained(model, session, session.compact(), folder / "last.pt", partial(_score, name))


def ddp(name: str, folder: Path, die_at: int | None) -> Trained:
    torch.distributed.init_process_group("gloo")
    model = nets.build(name)
    outer = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    session = Session(outer, optimizer, _steps(), example_inputs=nets.example(name), **SESSION)
    parts = {"state_dict": model, "optimizer": optimizer, "effp": session}
    _own_loop(name, outer, optimizer, parts, folder, die_at, lambda: None, lambda _: None)
    return Trained(model, session, session.compact(), folder / "last.pt", partial(_score, name))


def accelerate(name: str, folder: Path, die_at: int | None) -> Trained:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    bare = nets.build(name)
    optimizer: Any = torch.optim.SGD(bare.parameters(), lr=0.01, momentum=0.9)
    model, optimizer = accelerator.prepare(bare, optimizer)
    session = Session(model, optimizer, _steps(), example_inputs=nets.example(name), **SESSION)
    accelerator.register_for_checkpointing(session)
    done = sorted(path.name for path in folder.glob("epoch*"))
    if done:
        accelerator.load_state(str(folder / done[-1]))
    batches = _loader(name, die_at)
    for epoch in range(len(done), EPOCHS):
        for samples in batches:
            optimizer.zero_grad()
            accelerator.backward(nets.loss(name, model, samples))
            optimizer.step()
        accelerator.save_state(str(folder / f"epoch{epoch}"))
    return Trained(bare, session, session.compact(), folder / f"epoch{EPOCHS - 1}", partial(_score, name))


TOOLS = {function.__name__: function for function in (lightning, transformers, timm, torchvision, ddp, accelerate)}


def _steps() -> int:
    return EPOCHS * nets.IMAGES // nets.BATCH // _rank()[1]


def _score(name: str, network: nn.Module) -> float:
    return nets.outputs(name, network)


def _own_loop(
    name: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: dict[str, Any],
    folder: Path,
    die_at: int | None,
    after_step: Callable[[], None],
    after_epoch: Callable[[int], Any],
) -> None:
    """A loop as people write it: what is in `parts` is saved after every epoch, and loaded where it is there."""
    path, begin = folder / "last.pt", 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        begin = saved["epoch"] + 1
        for key, part in parts.items():
            part.load_state_dict(saved[key])
    batches = _loader(name, die_at)
    for epoch in range(begin, EPOCHS):
        model.train()
        for samples in batches:
            optimizer.zero_grad()
            nets.loss(name, model, samples).backward()
            optimizer.step()
            after_step()
        after_epoch(epoch + 1)
        if _rank()[0] == 0:
            torch.save({"epoch": epoch, **{key: part.state_dict() for key, part in parts.items()}}, path)


def cells(name: str, folder: Path, trained: Trained) -> dict[str, str]:
    """The cells that one run can fill: "yes", or "no: " and why."""
    session, network, small = trained.session, trained.network, trained.small
    masked = session.masked(network)
    left = _flops(name, small) / _flops(name, network)
    finite = all(bool(value.isfinite().all()) for value in network.parameters())
    trained_all = session.step == session.schedule.total_steps and finite
    same = effp_fx.verify(masked, small, nets.example(name))
    one, two = trained.validate(copy.deepcopy(network)), trained.validate(copy.deepcopy(small))
    return {
        "trains": _cell(trained_all, f"step {session.step} of {session.schedule.total_steps}, finite: {finite}"),
        "target_met": _cell(left <= SESSION["target_flops"], f"{left:.3f} of the FLOPs"),
        "equal": _cell(same.equal, f"relative error {same.max_relative_error:.1e}"),
        "val_equal": _cell(abs(one - two) <= 1e-4 * abs(one), f"{one:.6g} and {two:.6g}"),
    } | _exports(name, folder, small)


def _cell(right: bool, why: str) -> str:
    return "yes" if right else f"no: {why}"


def _flops(name: str, model: nn.Module) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(*nets.example(name))
    return int(counter.get_total_flops())


def _exports(name: str, folder: Path, small: nn.Module) -> dict[str, str]:
    """export_onnx compares the file with the model, and raises where they differ for no reason that it knows."""
    try:
        report = effp_fx.export_onnx(small, folder / "small.onnx", nets.example(name))
    except effp_fx.errors.EffpError as error:
        return {"exports": f"no: {error.what}"}
    if report.worst < 1e-3:
        return {"exports": "yes"}
    return {"exports": "yes", "note": "ONNX: top-k takes other queries among near ties, as `export_onnx` notes"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("net", choices=nets.NETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--cells", action="store_true")
    parser.add_argument("--control", action="store_true", help="Hugging Face's Trainer without a session")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.control:
        network = control(args.net, args.folder, args.die_at)
        torch.save(dict(network.named_parameters()), args.folder / "end.pt")
        return
    trained = TOOLS[args.tool](args.net, args.folder, args.die_at)
    if _rank()[0]:
        return
    torch.save(dict(trained.network.named_parameters()), args.folder / "end.pt")
    if args.cells:
        found = cells(args.net, args.folder, trained)
        notes = {"checkpoint": str(trained.checkpoint), "outputs": nets.outputs(args.net, trained.small)}
        (args.folder / "cells.json").write_text(json.dumps({"cells": found, **notes}))


if __name__ == "__main__":
    main()
