"""Augmentation for detectors, from torchvision.transforms.v2: SSD's own, a light one for small nets, and none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from effp_fx.data.dataset import Target, Transform
from effp_fx.errors import DataError

_GREY = 114
"""What zooming out fills with where nothing is said."""
_ALONG = ("labels", "difficult", "area")
"""What goes with its box when that is cropped away."""
_SMALLEST = 2.0
"""Pixels: sides below which what a crop leaves of a box is no longer an object."""


class BoxTransform:
    """Applies v2 transforms to an image and its target, boxes included; returns a float image of 0 to 1.

    Boxes of which a crop leaves nothing are dropped with their labels. `area` is that of the new box.

    Args:
        steps: transforms of torchvision.transforms.v2, in their order.
        difficult: keep difficult objects. Without them what is left of such an object is background.
    """

    def __init__(self, steps: Sequence[Any], *, difficult: bool = True) -> None:
        sanitise = v2.SanitizeBoundingBoxes(min_size=_SMALLEST, min_area=_SMALLEST, labels_getter=_along)
        to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
        # An image that stays as it is keeps all that is annotated, however small.
        self._steps = v2.Compose([*steps, sanitise, to_float] if steps else [to_float])
        self._difficult = difficult

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Image uint8 or float [3, height, width] and target in, the same kinds out."""
        if not self._difficult:
            target = _without_difficult(target)
        height, width = image.shape[-2:]
        boxes: Any = tv_tensors.BoundingBoxes(
            target["boxes"].reshape(-1, 4),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        )
        seen, there = self._steps(tv_tensors.Image(image), {**target, "boxes": boxes})
        plain = there["boxes"].as_subclass(Tensor)
        area = (plain[:, 2] - plain[:, 0]) * (plain[:, 3] - plain[:, 1])
        unchanged = torch.equal(plain, target["boxes"].reshape(-1, 4))
        return seen.as_subclass(Tensor), {**there, "boxes": plain, "area": target["area"] if unchanged else area}


def as_it_is(size: int | None = None) -> Transform:
    """For evaluation: the image as float 0 to 1, and where `size` is given, size x size pixels."""
    return BoxTransform([] if size is None else [_resize(size)])


def ssd_augmentation(
    size: int | None = None, *, flip: bool = True, fill: Sequence[int] = (123, 117, 104), difficult: bool = True
) -> Transform:
    """SSD's augmentation (Liu et al. 2016, section 2.2 and 3.6): distort colours, zoom out, IoU crop, flip, resize.

    The order and the numbers are torchvision's in its SSD reference.

    Args:
        size: side of the result, pixels; None: as the crop left it, for detectors that resize by themselves.
        flip: mirror half of the images.
        fill: colour around an image zoomed out, 0 to 255; the mean of ImageNet.
        difficult: train on difficult objects as well.
    """
    steps = [
        v2.RandomPhotometricDistort(),
        v2.RandomZoomOut(fill=list(fill)),
        v2.RandomIoUCrop(),
        v2.RandomHorizontalFlip(0.5 if flip else 0.0),
    ]
    return BoxTransform(_resized(steps, size), difficult=difficult)


def light_augmentation(size: int | None = None, *, flip: bool = True, difficult: bool = True) -> Transform:
    """For small nets and short runs, which SSD's own keeps from fitting: milder zoom and crop, colours by halves.

    Arguments as of `ssd_augmentation`. The numbers are ours.
    """
    steps = [
        v2.RandomApply([v2.RandomPhotometricDistort()], p=0.5),
        v2.RandomZoomOut(fill=_GREY, side_range=(1.0, 1.5), p=0.3),
        v2.RandomApply([v2.RandomIoUCrop(min_scale=0.6, trials=4)], p=0.5),
        v2.RandomHorizontalFlip(0.5 if flip else 0.0),
    ]
    return BoxTransform(_resized(steps, size), difficult=difficult)


def _resized(steps: Sequence[Any], size: int | None) -> list[Any]:
    return [*steps] if size is None else [*steps, _resize(size)]


def _resize(size: int) -> Any:
    if size < 1:
        raise DataError("images cannot be resized to this", seen=f"size={size}", expected="at least 1 pixel")
    return v2.Resize((size, size), antialias=True)


def _along(sample: tuple[Any, Target]) -> list[Tensor]:
    return [sample[1][name] for name in _ALONG]


def _without_difficult(target: Target) -> Target:
    keep = ~target["difficult"]
    return {**target, **{name: target[name][keep] for name in ("boxes", *_ALONG)}}
