"""Batches: lists of images and targets, shuffled and augmented from a seed whatever the number of worker processes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from effp_fx.data.dataset import Target

Batch = tuple[list[Tensor], list[Target]]


def collate(samples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """A batch as torchvision's detectors take it: images and targets side by side, nothing stacked."""
    return [image for image, _ in samples], [target for _, target in samples]


def loader(
    dataset: Dataset[tuple[Tensor, Target]],
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    drop_last: bool = False,
    sampler: Sampler[int] | None = None,
) -> DataLoader[tuple[Tensor, Target]]:
    """A loader whose order and whose workers' random numbers come from the seed alone.

    With workers, each draws from its own stream, so a run is repeated bit for bit by the same number of them.

    Args:
        dataset: what `open_dataset` returns, or like it.
        batch_size: images.
        shuffle: every epoch anew; leave it out where a sampler shuffles.
        seed: of the order and of the workers.
        workers: processes that decode and augment; 0: this one.
        drop_last: leave out the last batch where it is smaller.
        sampler: such as DistributedSampler.
    """
    generator = torch.Generator()
    generator.manual_seed(seed)
    options: dict[str, Any] = {"persistent_workers": True} if workers else {}
    return DataLoader(
        dataset,
        batch_size,
        shuffle=shuffle if sampler is None else None,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=drop_last,
        worker_init_fn=_seed_worker,
        generator=generator,
        **options,
    )


def _seed_worker(_: int) -> None:
    # torch has seeded itself with base seed + worker number; what else may be drawn from follows it.
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)
