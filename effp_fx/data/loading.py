"""Batches whose order and augmentation come from seed, epoch and image alone, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from effp_fx.data.dataset import DetectionDataset, Target
from effp_fx.errors import DataError

Batch = tuple[list[Tensor], list[Target]]
Place = tuple[int, int]
"""Epoch, and index of the image."""


def collate(samples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """A batch as torchvision's detectors take it: images and targets side by side, nothing stacked."""
    return [image for image, _ in samples], [target for _, target in samples]


class Order(Sampler[Place]):
    """The order of an epoch, as (epoch, index): shuffled anew each time, one part of it for each rank.

    Each time it is iterated the epoch goes up by one; `set_epoch` resumes at any place.

    Args:
        length: images.
        shuffle: False: the order of the data set.
        seed: of the shuffling.
        rank: which process of a distributed run this is.
        world: how many there are; the first images are repeated so that all get as many.
    """

    def __init__(self, length: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self._indices: DistributedSampler[int] = DistributedSampler(
            range(length),  # type: ignore[arg-type]  # all that is asked of the data set is its length
            num_replicas=world,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
        )
        self._epoch, self._skip = 0, 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Let the next epoch be this one, its first `skip` images (of this rank) left out."""
        self._epoch, self._skip = epoch, skip

    def __iter__(self) -> Iterator[Place]:
        """(epoch, index) of each image."""
        epoch, skip = self._epoch, self._skip
        self._epoch, self._skip = epoch + 1, 0
        self._indices.set_epoch(epoch)
        for index in list(self._indices)[skip:]:
            yield epoch, index

    def __len__(self) -> int:
        """Images that are left of the next epoch, for this rank."""
        return len(self._indices) - self._skip


class Repeatable(Dataset[tuple[Tensor, Target]]):
    """A data set asked by (epoch, index): whatever its transforms draw comes from the seed, the epoch and the index."""

    def __init__(self, dataset: Dataset[tuple[Tensor, Target]], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, Target]:
        """The image and its target; the random numbers of the process are left as they were."""
        epoch, index = place
        # Not torch.manual_seed: it also seeds the GPUs, or notes, with a stack trace, that it will.
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed((self.seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + index) % 2**63)
        try:
            return self.dataset[index]
        finally:
            generator.set_state(before)


def loader(
    dataset: DetectionDataset | Dataset[tuple[Tensor, Target]],
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[tuple[Tensor, Target]]:
    """A loader of (images, targets) that gives the same batches for any number of workers, and after a resume.

    Args:
        dataset: what `open_dataset` returns, or like it.
        batch_size: images, of each rank.
        shuffle: every epoch anew.
        seed: of order and augmentation.
        workers: processes that decode and augment; 0: this one.
        drop_last: leave out the last batch where it is smaller.
        rank: which process of a distributed run this is.
        world: how many there are.
    """
    length = len(dataset)  # type: ignore[arg-type]  # torch's Dataset does not promise a length; all of ours have one
    options: dict[str, Any] = {"persistent_workers": True} if workers else {}
    return DataLoader(
        Repeatable(dataset, seed),
        batch_size,
        sampler=Order(length, shuffle=shuffle, seed=seed, rank=rank, world=world),
        num_workers=workers,
        collate_fn=collate,
        drop_last=drop_last,
        # Of its own, so that iterating draws nothing from the process's random numbers.
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def set_epoch(batches: DataLoader[tuple[Tensor, Target]], epoch: int, skip_batches: int = 0) -> None:
    """Let the next pass of a `loader` be this epoch, from this batch on: a run that was cut off goes on there.

    Raises:
        DataError: the loader is not one of `loader`.
    """
    order = batches.sampler
    if not isinstance(order, Order):
        raise DataError(
            "the epoch of this loader cannot be set", seen=type(order).__name__, mend="use data.loader(...)"
        )
    order.set_epoch(epoch, skip_batches * (batches.batch_size or 1))
