"""Sessions under DistributedDataParallel, in two gloo processes, and the refusal of sharded models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from effp_fx.errors import SessionError
from tests.session_run import STEPS, attached, batch, held, net, sgd
from tests.untouched import untouched


def trained(rank: int | None, session_first: bool) -> dict[str, Any]:
    """What a rank has in the end; without a rank: one process on the joined batch.

    Norms use their running statistics, for those of a batch would not be those of its halves.
    """
    model = net("silu").eval()
    if rank:
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(1.5)  # another start, which DistributedDataParallel overwrites
    optimizer = sgd(model)
    options = {"regrow_by": "random", "regrow": 0.8}
    session = attached(model, optimizer, **options) if session_first else None
    outer: nn.Module = model if rank is None else DistributedDataParallel(model)
    session = session or attached(outer, optimizer, **options)
    keeps = []
    for step in range(STEPS):
        images, labels = batch(step)
        half = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
        optimizer.zero_grad()
        nn.functional.cross_entropy(outer(images[half]), labels[half]).backward()
        optimizer.step()
        keeps.append(torch.from_numpy(session.keep))
        assert session.step < 2 or not held(session)
    small = session.compact()
    return {"keeps": keeps, "weights": model.state_dict(), "compact": [tuple(v.shape) for v in small.parameters()]}


def as_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ends = [trained(rank, session_first) for session_first in (True, False)]
    torch.save(ends, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_on_the_joined_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(as_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    alone = trained(None, True)
    assert not all(keep.all() for keep in alone["keeps"])
    for one, two in zip(*ranks, strict=True):
        for keeps in zip(one["keeps"], two["keeps"], alone["keeps"], strict=True):
            assert torch.equal(keeps[0], keeps[1]) and torch.equal(keeps[0], keeps[2])
        assert one["compact"] == two["compact"] == alone["compact"]
        for name, value in alone["weights"].items():
            assert torch.equal(one["weights"][name], two["weights"][name]), f"{name} differs between ranks"
            assert torch.allclose(one["weights"][name], value, rtol=1e-4, atol=1e-6), name


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_sharded_models_are_refused() -> None:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    model: Any = fully_shard(net(), mesh=mesh)
    optimizer = sgd(model)
    with pytest.raises(SessionError) as caught:
        attached(model, optimizer)
    text = str(caught.value)
    assert "a sharded model (FSDP) cannot be pruned while it trains" in text
    assert "seen: parameters of which each rank holds a part" in text
    assert "to mend it: train with DistributedDataParallel" in text
    assert not optimizer._optimizer_step_pre_hooks


def test_the_first_fsdp_is_refused_by_its_wrapper() -> None:
    """Its flat parameters need a device that is no CPU to be made, so only the class is there to be told by."""

    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = FullyShardedDataParallel(net())
    with untouched(model), pytest.raises(SessionError, match="a sharded model"):
        attached(model, sgd(model))
