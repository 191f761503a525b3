"""The processes of a run: one, or as many as torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from effp_fx.errors import TrainingError

_PATIENCE = timedelta(hours=2)
"""How long processes wait for each other: one exports and measures while the others do nothing."""


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many, and the device that is its own."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model, with DistributedDataParallel around it where there are several processes."""
        if self.world == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the statistics of the first: it is those that are saved."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def joined(device: str | None = None) -> Iterator[Ranks]:
    """The processes that torchrun has started, joined for the time of the block; without torchrun this one alone.

    Args:
        device: as torch names it; None: a GPU where there is one. Under torchrun each process takes its own.

    Raises TrainingError for a device that is not there.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    own = _device(device, world)
    if world == 1:
        yield Ranks(0, 1, own)
        return
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(rank, world, own)
    finally:
        dist.destroy_process_group()


def _device(name: str | None, world: int) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if world > 1 and device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise TrainingError(
            "this device is not there", seen=f"{name!r}: {str(error).splitlines()[0]}", expected="cpu, cuda or cuda:N"
        ) from error
    return device
