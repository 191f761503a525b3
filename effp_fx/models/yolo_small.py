"""A small YOLO-like detector for images of 96 to 160 pixels that trains from scratch on a CPU in minutes."""

# mypy: disable-error-code="no-any-return"
# A module call is typed Any; the annotations of forward are for the reader.
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, batched_nms, clip_boxes_to_image

from effp_fx.models.fixed_size import FixedSizeTransform
from effp_fx.models.yolo_loss import yolo_losses

STRIDES = (4, 8, 16)
"""Pixels between neighbours of each feature map."""


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> Conv2dNormActivation:
    """Convolution, batch norm, SiLU."""
    return Conv2dNormActivation(inputs, outputs, kernel, stride, activation_layer=nn.SiLU)


class Split(nn.Module):
    """YOLOv8's C2f with one bottleneck: half of the channels goes through it, and all three parts are joined."""

    def __init__(self, inputs: int, outputs: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.expand, self.join = conv(inputs, outputs), conv(3 * half, outputs)
        self.bottleneck = nn.Sequential(conv(half, half, 3), conv(half, half, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        left, right = self.expand(x).chunk(2, 1)
        deep = self.bottleneck(right)
        return self.join(torch.cat([left, right, right + deep if self.shortcut else deep], 1))


class PooledPyramid(nn.Module):
    """YOLOv5's SPPF: one max pooling of 5 x 5 three times in a row, all four maps joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.join = conv(channels, channels // 2), conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        maps = [self.reduce(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, stride=1, padding=2))
        return self.join(torch.cat(maps, 1))


class Neck(nn.Module):
    """PAN: the coarse map is added to the fine ones on the way up, and the fine ones to the coarse on the way down."""

    def __init__(self, fine: int, middle: int, coarse: int) -> None:
        super().__init__()
        self.up_middle = Split(coarse + middle, middle, shortcut=False)
        self.up_fine = Split(middle + fine, fine, shortcut=False)
        self.down_fine, self.down_middle = conv(fine, fine, 3, 2), conv(middle, middle, 3, 2)
        self.out_middle = Split(fine + middle, middle, shortcut=False)
        self.out_coarse = Split(middle + coarse, coarse, shortcut=False)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> list[Tensor]:
        """Maps of the three strides -> maps of the same shapes, each of which has seen the others."""
        middle = self.up_middle(torch.cat([_resized(coarse, middle), middle], 1))
        fine = self.up_fine(torch.cat([_resized(middle, fine), fine], 1))
        middle = self.out_middle(torch.cat([self.down_fine(fine), middle], 1))
        return [fine, middle, self.out_coarse(torch.cat([self.down_middle(middle), coarse], 1))]


class Head(nn.Module):
    """Decoupled: one branch for the distances to the four sides, as distributions over bins, and one for the class."""

    def __init__(self, inputs: int, hidden: int, bins: int, classes: int) -> None:
        super().__init__()
        self.box = nn.Sequential(conv(inputs, hidden, 3), nn.Conv2d(hidden, 4 * bins, 1))
        classify = nn.Conv2d(hidden, classes, 1)
        self.score = nn.Sequential(conv(inputs, hidden, 3), classify)
        classify.bias = nn.Parameter(torch.full((classes,), -4.0))  # to begin with, a point in fifty is an object

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> logits of the distances (N, HW, 4 bins) and of the classes (N, HW, classes)."""
        return self.box(x).flatten(2).transpose(1, 2), self.score(x).flatten(2).transpose(1, 2)


class YoloSmall(nn.Module):
    """C2f blocks, SPPF, a PAN neck and decoupled heads without anchors, on maps of stride 4, 8 and 16.

    The parts are those of YOLOv8; depth, width and strides are ours, and the loss is in ``yolo_loss``. The interface
    is that of torchvision's detectors: ``forward(images, targets)`` takes a list of images (3, H, W) in 0 to 1 and, in
    training, a list of dicts of ``boxes`` (n, 4), x1 y1 x2 y2 in pixels, and ``labels`` (n,), from 1 up. It returns a
    dict of losses in training, and in eval a list of dicts of ``boxes``, ``scores`` and ``labels``.
    """

    def __init__(
        self,
        num_classes: int = 13,
        size: int = 96,
        width: int = 16,
        bins: int = 12,
        score_thresh: float = 0.01,
        nms_thresh: float = 0.6,
        topk_candidates: int = 400,
        detections_per_img: int = 100,
    ) -> None:
        """Build the net.

        Args:
            num_classes: the background included, as in torchvision, although no output stands for it.
            size: height and width in pixels, a multiple of 16 from 64 to 320.
            width: channels of the stem, a multiple of 8; deeper layers have two and four times as many.
            bins: of the distribution of a distance; the largest distance is bins - 1 strides.
            score_thresh, nms_thresh, topk_candidates, detections_per_img: of the detections in eval mode.

        Raises:
            ValueError: size or width is not as said.
        """
        super().__init__()
        if size % 16 or not 64 <= size <= 320:
            raise ValueError(f"size must be a multiple of 16 from 64 to 320, not {size}")
        if width < 8 or width % 8:
            raise ValueError(f"width must be a multiple of 8, not {width}")
        self.bins, self.score_thresh, self.nms_thresh = bins, score_thresh, nms_thresh
        self.topk_candidates, self.detections_per_img = topk_candidates, detections_per_img
        self.transform = FixedSizeTransform(size)
        fine, middle, coarse = 2 * width, 4 * width, 4 * width
        self.fine = nn.Sequential(conv(3, width, 3, 2), conv(width, fine, 3, 2), Split(fine, fine))
        self.middle = nn.Sequential(conv(fine, middle, 3, 2), Split(middle, middle))
        self.coarse = nn.Sequential(conv(middle, coarse, 3, 2), Split(coarse, coarse), PooledPyramid(coarse))
        self.neck = Neck(fine, middle, coarse)
        self.heads = nn.ModuleList(Head(c, fine, bins, num_classes - 1) for c in (fine, middle, coarse))

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return losses or detections, as the class says; ValueError where training has no targets."""
        if self.training and targets is None:
            raise ValueError("targets must be given in training")
        sizes = [image.shape[-2:] for image in images]
        batch, targets = self.transform(images, targets)
        fine = self.fine(batch.tensors)
        middle = self.middle(fine)
        maps = self.neck(fine, middle, self.coarse(middle))
        boxes, scores = (torch.cat(parts, 1) for parts in zip(*map(_apply, self.heads, maps), strict=True))
        points, strides = _grid(maps)
        distances = self.distances(boxes)
        found = torch.cat([points - distances[..., :2] * strides, points + distances[..., 2:] * strides], -1)
        if self.training:
            return yolo_losses(boxes.unflatten(2, (4, -1)), found, scores, points, strides, targets)
        found = clip_boxes_to_image(found, batch.tensors.shape[-2:])
        detections = [self.detections(*each) for each in zip(found, scores.sigmoid(), strict=True)]
        return self.transform.postprocess(detections, batch.image_sizes, sizes)

    def distances(self, logits: Tensor) -> Tensor:
        """Return the mean of each distribution, in strides: (N, points, 4 bins) -> (N, points, 4)."""
        bins = torch.arange(self.bins, dtype=logits.dtype, device=logits.device)
        return (logits.unflatten(2, (4, self.bins)).softmax(-1) * bins).sum(-1)

    def detections(self, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """Return what is kept of one image's boxes (points, 4) and scores (points, classes)."""
        flat = scores.flatten()
        count = min(self.topk_candidates, int((flat > self.score_thresh).sum()))
        best, index = flat.topk(count)
        boxes, labels = boxes[index // scores.shape[1]], index % scores.shape[1] + 1
        kept = batched_nms(boxes, best, labels, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[kept], "scores": best[kept], "labels": labels[kept]}


def _apply(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return module(x)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="nearest")


def _grid(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Centre of each cell (points, 2), x y in pixels, and its stride (points, 1), map after map."""
    centres, strides = [], []
    for each, stride in zip(maps, STRIDES, strict=True):
        height, width = each.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres.append((torch.stack([x, y], -1).flatten(0, 1) + 0.5) * stride)
        strides.append(torch.full((height * width, 1), float(stride)))
    return torch.cat(centres).to(maps[0]), torch.cat(strides).to(maps[0])
