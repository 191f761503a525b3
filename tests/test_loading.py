"""Batches repeat for any number of workers, ranks share an epoch, augmentation moves boxes with their objects."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from effp_fx.data import (
    DetectionDataset,
    as_it_is,
    collate,
    light_augmentation,
    loader,
    open_dataset,
    set_epoch,
    ssd_augmentation,
)
from effp_fx.data.loading import Order
from effp_fx.errors import DataError
from tests.data_sets import make_voc

BLACK = (0, 0, 0)
AUGMENTATIONS = {
    "ssd": ssd_augmentation(48, fill=BLACK),
    "light": light_augmentation(48, fill=BLACK),
    "none": as_it_is(48),
}


def bright_square(random: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """A white square on black, and its box."""
    x, y = torch.randint(4, 50, (2,), generator=random).tolist()
    side = int(torch.randint(20, 45, (1,), generator=random))
    image = torch.zeros(3, 96, 96, dtype=torch.uint8)
    image[:, y : y + side, x : x + side] = 255
    return image, target([[x, y, x + side, y + side]])


def target(boxes: Any) -> dict[str, Any]:
    there = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(there)
    return {
        "boxes": there,
        "labels": torch.arange(1, count + 1),
        "difficult": torch.arange(count) % 2 == 1,
        "area": (there[:, 2:] - there[:, :2]).prod(1),
        "image_id": 5,
    }


def means(batches: DataLoader[Any]) -> list[tuple[int, float]]:
    return [
        (there["image_id"], image.mean().item())
        for images, targets in batches
        for image, there in zip(images, targets, strict=True)
    ]


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    two = open_dataset(make_voc(tmp_path), transforms=light_augmentation(32))
    return DetectionDataset(two.records * 4, two.classes, two.report, two.transforms)


def test_batches_are_the_same_with_workers_and_without_and_epochs_differ(dataset: DetectionDataset) -> None:
    alone, shared = (loader(dataset, 3, shuffle=True, seed=4, workers=count) for count in (0, 2))
    first, second = means(alone), means(alone)
    assert first == means(shared) and second == means(shared)
    assert first != second and len(first) == 8
    assert first != means(loader(dataset, 3, shuffle=True, seed=5))


def test_the_random_numbers_of_the_process_are_left_as_they_were(dataset: DetectionDataset) -> None:
    before = torch.get_rng_state()
    means(loader(dataset, 3, shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_goes_on_in_the_middle_of_an_epoch(dataset: DetectionDataset) -> None:
    whole = loader(dataset, 2, shuffle=True)
    means(whole)
    second = means(whole)
    resumed = loader(dataset, 2, shuffle=True)
    set_epoch(resumed, 1, skip_batches=3)
    assert means(resumed) == second[6:]
    assert len(means(resumed)) == 8  # and the epoch after it is whole
    with pytest.raises(DataError, match="cannot be set"):
        set_epoch(DataLoader(dataset, 2, collate_fn=collate), 1)


def test_ranks_share_an_epoch() -> None:
    orders = [Order(7, shuffle=True, seed=1, rank=rank, world=2) for rank in (0, 1)]
    parts = [[index for _, index in order] for order in orders]
    assert len(parts[0]) == len(parts[1]) == 4 and {*parts[0], *parts[1]} == set(range(7))
    assert [epoch for epoch, _ in orders[0]] == [1] * 4


def test_images_and_targets_come_side_by_side(dataset: DetectionDataset) -> None:
    images, targets = next(iter(loader(dataset, 3)))
    assert len(images) == len(targets) == 3 and images[0].shape == (3, 32, 32)
    assert images[0].dtype == torch.float32 and images[0].min() >= 0 and images[0].max() <= 1
    assert len(loader(dataset, 3)) == 3 and len(loader(dataset, 3, drop_last=True)) == 2


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_box_stays_on_its_object(name: str) -> None:
    random, judged = torch.Generator().manual_seed(0), 0
    for _ in range(25):
        image, there = bright_square(random)
        seen, found = AUGMENTATIONS[name](image, there)
        assert seen.shape == (3, 48, 48) and seen.dtype == torch.float32 and type(found["boxes"]) is Tensor
        grey = seen.mean(0)
        if len(found["boxes"]) == 0 or grey.max() - grey.min() < 0.3:  # cropped away, or cropped to nothing else
            continue
        bright = grey > (grey.max() + grey.min()) / 2
        rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
        edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        large = (found["boxes"][0, 2:] - found["boxes"][0, :2]).min() > 6
        judged += int(large)
        assert not large or (found["boxes"][0] - edges).abs().max() <= 2
    assert judged > 12


def test_what_belongs_to_a_box_goes_with_it() -> None:
    boxes = [[x, y, x + 12, y + 12] for x in (2, 40, 78) for y in (2, 40, 78)]
    image, dropped = torch.zeros(3, 96, 96, dtype=torch.uint8), 0
    for _ in range(20):
        there = target(boxes)
        _, found = ssd_augmentation(48)(image, there)
        assert len(found["boxes"]) == len(found["labels"]) == len(found["difficult"]) == len(found["area"])
        assert torch.equal(found["difficult"], found["labels"] % 2 == 0) and found["image_id"] == 5
        size = (found["boxes"][:, 2:] - found["boxes"][:, :2]).prod(1)
        torch.testing.assert_close(found["area"], size)
        dropped += len(found["boxes"]) < 9
        assert torch.equal(there["boxes"], torch.tensor(boxes).float())  # the data set's own
    assert dropped > 3


def test_difficult_objects_may_be_left_out_and_images_without_objects_pass() -> None:
    image = torch.zeros(3, 30, 40, dtype=torch.uint8)
    _, found = light_augmentation(None, flip=False, difficult=False)(image, target([[1, 1, 20, 20], [2, 2, 30, 28]]))
    assert 2 not in found["labels"]
    for augment in AUGMENTATIONS.values():
        seen, found = augment(image, target([]))
        assert found["boxes"].shape == (0, 4) and seen.shape == (3, 48, 48)


def test_evaluation_keeps_every_box_and_the_area_of_its_mask() -> None:
    there = {**target([[3, 3, 4, 4]]), "area": torch.tensor([0.5])}
    _, found = as_it_is()(torch.zeros(3, 9, 9, dtype=torch.uint8), there)
    assert torch.equal(found["boxes"], there["boxes"]) and found["area"].tolist() == [0.5]


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be resized"):
        ssd_augmentation(0)
