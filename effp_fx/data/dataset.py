"""The data set that every reader returns: images as uint8 tensors, boxes as pixel edges, labels that begin at 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from effp_fx.data.problems import DataReport, Problem
from effp_fx.errors import DataError

Target = dict[str, Any]
"""boxes float32 [n, 4] xyxy pixel edges, labels int64 [n], area float32 [n], difficult bool [n], image_id int."""
Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


@dataclass(frozen=True)
class Box:
    """One annotated object: pixel edges, counted from 0; the area of its mask where it is known, else of the box."""

    label: int
    x0: float
    y0: float
    x1: float
    y1: float
    difficult: bool = False
    area: float | None = None


@dataclass(frozen=True)
class Record:
    """One image and its annotation as they were read."""

    image: Path
    image_id: int
    width: int
    height: int
    boxes: tuple[Box, ...]


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images and boxes from a VOC, COCO or YOLO folder.

    Args:
        records: what was read.
        classes: names; the label of `classes[i]` is i + 1, and 0 is the background as in torchvision's detectors.
        report: what was read and left out; an image that breaks when it is decoded is added.
        transforms: called with image and target, returns both.
    """

    def __init__(
        self,
        records: Sequence[Record],
        classes: Sequence[str],
        report: DataReport,
        transforms: Transform | None = None,
    ) -> None:
        self.records = tuple(records)
        self.classes = tuple(classes)
        self.report = report
        self.transforms = transforms

    def __len__(self) -> int:
        """Images."""
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Image uint8 [3, height, width] and its target; of images that cannot be decoded, the next that can.

        Raises:
            DataError: the image cannot be decoded and problems are to stop, or none can.
            IndexError: past the end.
        """
        image, target = self._first_readable(range(len(self.records))[index])
        return (image, target) if self.transforms is None else self.transforms(image, target)

    def target(self, index: int) -> Target:
        """The target of an image, without its pixels and its transforms."""
        record = self.records[index]
        boxes = torch.tensor([(box.x0, box.y0, box.x1, box.y1) for box in record.boxes], dtype=torch.float32)
        boxes = boxes.reshape(-1, 4)
        whole = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
        area = [box.area if box.area is not None else size for box, size in zip(record.boxes, whole, strict=True)]
        return {
            "boxes": boxes,
            "labels": torch.tensor([box.label for box in record.boxes], dtype=torch.int64),
            "image_id": record.image_id,
            "difficult": torch.tensor([box.difficult for box in record.boxes], dtype=torch.bool),
            "area": torch.tensor(area, dtype=torch.float32),
        }

    def _first_readable(self, index: int) -> tuple[Tensor, Target]:
        for step in range(len(self.records)):
            at = (index + step) % len(self.records)
            try:
                return read_image(self.records[at].image), self.target(at)
            except DataError as error:
                seen = error.seen or ""
            self.report.note(Problem("corrupt image", str(self.records[at].image), seen))
        raise DataError("no image of the data set can be decoded", where=str(self.records[index].image))


def read_image(path: Path) -> Tensor:
    """An image file as RGB, uint8 [3, height, width]. Raises DataError where it cannot be decoded."""
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise what they like: SyntaxError, struct.error, their own
        text = " ".join(str(error).split())[:200]
        raise DataError("corrupt image", where=str(path), seen=f"{type(error).__name__}: {text}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
