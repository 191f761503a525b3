"""Mean average precision of detections: COCO's by pycocotools, PASCAL VOC's by its devkit's rules."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from effp_fx.errors import DataError
from effp_fx.evaluate.voc_ap import Matched, area_under_curve, eleven_points, match_class

Floats = NDArray[np.float64]

_MOST = 100
"""Detections of an image that count, the highest scores first, as in COCO."""


@dataclass(frozen=True)
class DetectionScores:
    """Average precisions, 0 to 1; NaN where nothing could be found because nothing is there.

    Args:
        map: COCO's mAP@[.5:.95]: 101 recall points, ten IoU thresholds, mean over the classes that occur.
        map50: the same at IoU 0.5 alone.
        map75: the same at IoU 0.75 alone.
        map_small, map_medium, map_large: map of objects below 32 x 32 pixels, up to 96 x 96, and above.
        voc: VOC 2010's mAP at IoU 0.5, the area under the curve.
        voc07: VOC 2007's mAP at IoU 0.5, 11 recall points.
        per_class: class name -> map of that class.
        per_class50: class name -> map50 of that class.
        images: how many were judged.
        objects: how many there were to find, difficult ones left out.
    """

    map: float
    map50: float
    map75: float
    map_small: float
    map_medium: float
    map_large: float
    voc: float
    voc07: float
    per_class: dict[str, float]
    per_class50: dict[str, float]
    images: int
    objects: int


@dataclass
class DetectionEvaluator:
    """Collects detections and what was there, batch by batch, and scores them.

    Difficult objects are neither to be found nor held against a detector that finds them. (COCO's word for that is
    iscrowd, so with COCO's measure the overlap with them counts against the detection's own area.)

    Args:
        classes: names; the label of `classes[i]` is i + 1.
    """

    classes: Sequence[str]
    _found: dict[int, tuple[Floats, Floats, NDArray[np.int64]]] = field(default_factory=dict, init=False)
    _there: dict[int, tuple[Floats, NDArray[np.int64], NDArray[np.bool_], Floats]] = field(
        default_factory=dict, init=False
    )

    def update(self, outputs: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch; an image that was added before is not added again (samplers repeat some to fill a batch).

        Args:
            outputs: as torchvision's detectors return: boxes [n, 4] xyxy, scores [n], labels [n], of one image each.
            targets: boxes [n, 4] xyxy, labels [n], image_id; difficult [n] and area [n] may be absent.

        Raises:
            DataError: the two differ in length, a shape does not fit, a number is not finite, a label has no class.
        """
        if len(outputs) != len(targets):
            raise DataError(
                "outputs and targets are not of the same images", seen=f"{len(outputs)} and {len(targets)} of them"
            )
        for output, target in zip(outputs, targets, strict=True):
            key = int(target["image_id"])
            if key in self._there:
                continue
            boxes, labels = self._read(target, f"target of image {key}")
            difficult = _array(target.get("difficult", np.zeros(len(labels))), bool)
            area = _array(target.get("area", _areas(boxes)), np.float64)
            found, classes = self._read(output, f"output of image {key}")
            scores = _array(output["scores"], np.float64)
            if scores.shape != classes.shape or not np.isfinite(scores).all():
                raise DataError(
                    "the scores do not fit the boxes", where=f"output of image {key}", seen=f"shape {scores.shape}"
                )
            self._there[key] = boxes, labels, difficult, area
            self._found[key] = found, scores, classes

    def compute(self) -> DetectionScores:
        """Score all that was added. Raises DataError where that is nothing."""
        if not self._there:
            raise DataError("there is nothing to score", expected="update() with a batch first")
        coco = self._coco()
        voc = [ap for ap in map(area_under_curve, self._matched()) if not np.isnan(ap)]
        voc07 = [ap for ap in map(eleven_points, self._matched()) if not np.isnan(ap)]
        return DetectionScores(
            **coco,
            voc=float(np.mean(voc)) if voc else float("nan"),
            voc07=float(np.mean(voc07)) if voc07 else float("nan"),
            images=len(self._there),
            objects=sum(int((~difficult).sum()) for _, _, difficult, _ in self._there.values()),
        )

    def _read(self, source: Mapping[str, Any], where: str) -> tuple[Floats, NDArray[np.int64]]:
        boxes, labels = _array(source["boxes"], np.float64), _array(source["labels"], np.int64)
        if boxes.shape != (len(labels), 4) and not (boxes.size == 0 and len(labels) == 0):
            raise DataError("boxes and labels do not fit", where=where, seen=f"{boxes.shape} and {labels.shape}")
        if not np.isfinite(boxes).all():
            raise DataError("a box is not finite", where=where, mend="the model's weights may hold NaN")
        if ((labels < 1) | (labels > len(self.classes))).any():
            wrong = sorted(set(labels[(labels < 1) | (labels > len(self.classes))].tolist()))
            raise DataError("a label has no class", where=where, seen=str(wrong), expected=f"1 to {len(self.classes)}")
        return boxes.reshape(-1, 4), labels

    def _matched(self) -> list[Matched]:
        images = [
            (*self._found[key], boxes, labels, difficult) for key, (boxes, labels, difficult, _) in self._there.items()
        ]
        return [match_class(images, label) for label in range(1, len(self.classes) + 1)]

    def _coco(self) -> dict[str, Any]:
        truth, found = COCO(), COCO()
        images = [{"id": key} for key in self._there]
        categories = [{"id": label} for label in range(1, len(self.classes) + 1)]
        truth.dataset = {"images": images, "categories": categories, "annotations": self._truth_rows()}
        found.dataset = {"images": images, "categories": categories, "annotations": self._found_rows()}
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
            truth.createIndex()
            found.createIndex()
            judge = COCOeval(truth, found, "bbox")
            judge.params.maxDets = [1, 10, _MOST]
            judge.evaluate()
            judge.accumulate()
        # precision: IoU threshold, recall point, class, range of areas, most detections; -1 where nothing is there
        precision = np.where(judge.eval["precision"] < 0, np.nan, judge.eval["precision"])[..., -1]
        names = list(self.classes)
        return {
            "map": _mean(precision[:, :, :, 0]),
            "map50": _mean(precision[0, :, :, 0]),
            "map75": _mean(precision[5, :, :, 0]),
            "map_small": _mean(precision[:, :, :, 1]),
            "map_medium": _mean(precision[:, :, :, 2]),
            "map_large": _mean(precision[:, :, :, 3]),
            "per_class": {name: _mean(precision[:, :, index, 0]) for index, name in enumerate(names)},
            "per_class50": {name: _mean(precision[0, :, index, 0]) for index, name in enumerate(names)},
        }

    def _truth_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for key, (boxes, labels, difficult, area) in self._there.items():
            for box, label, crowd, size in zip(boxes, labels, difficult, area, strict=True):
                rows.append(_row(len(rows) + 1, key, box, int(label), area=float(size), iscrowd=int(crowd)))
        return rows

    def _found_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for key, (boxes, scores, labels) in self._found.items():
            for box, score, label, size in zip(boxes, scores, labels, _areas(boxes), strict=True):
                rows.append(_row(len(rows) + 1, key, box, int(label), area=float(size), score=float(score), iscrowd=0))
        return rows


def _row(number: int, image: int, box: Floats, label: int, **more: float) -> dict[str, Any]:
    x0, y0, x1, y1 = box.tolist()
    return {"id": number, "image_id": image, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], **more}


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _areas(boxes: Floats) -> Floats:
    boxes = boxes.reshape(-1, 4)
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().float().numpy() if values.is_floating_point() else values.cpu().numpy()
    return np.asarray(values, dtype=dtype)
