"""Runs a file of boxes and scores, or of detections, over a data set: inputs for calibration, and its mAP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effp_fx.data import DetectionDataset
from effp_fx.errors import ExportError
from effp_fx.evaluate.detection import DetectionEvaluator, DetectionScores
from effp_fx.export import int8, parity
from effp_fx.export.handoff.board.runtime import detections, images
from effp_fx.export.handoff.preprocessing import Preprocess
from effp_fx.export.int8 import Feed, Int8Report
from effp_fx.export.report import Decoding, ExportReport

_LEAST_SCORE = 0.01
"""mAP counts weak detections too: the threshold of a family for showing boxes is lowered to this."""


@dataclass(frozen=True)
class Prepared:
    """A file, and how the pictures of a data set become its input."""

    report: ExportReport
    data: DetectionDataset
    preprocess: Preprocess

    def feeds(self, most: int) -> Iterator[Feed]:
        """Inputs of the first `most` pictures."""
        for index in range(min(most, len(self.data))):
            yield self.feed(index)[0]

    def feed(self, index: int) -> tuple[Feed, images.Placed]:
        """One input, and where the picture lies in it."""
        port = self.report.inputs[0]
        height, width = self.size
        values, placed = images.prepare(self._picture(index), self.preprocess.as_json(height, width))
        if len(port.shape) == 4:
            values = np.repeat(values[None], port.shape[0] if isinstance(port.shape[0], int) else 1, axis=0)
        return {port.name: values}, placed

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        height, width = self.report.inputs[0].shape[-2:]
        return int(height), int(width)

    def _picture(self, index: int) -> NDArray[np.uint8]:
        picture: NDArray[np.uint8] = np.ascontiguousarray(self.data[index][0].permute(1, 2, 0).numpy())
        return picture


def quantised(prepared: Prepared, path: Path, method: str = "entropy", most: int = 64) -> Int8Report:
    """Quantise the file that was exported and judge both on the data set.

    Args:
        prepared: the file in float, with the data it is calibrated and judged on.
        path: the file to write.
        method: of calibration, as in `int8.quantise`.
        most: pictures to calibrate on.

    Raises:
        ExportError: the file cannot be quantised, or its labels are not those of the data set.
    """
    decoding = prepared.report.decoding
    if decoding is not None:
        _offset(decoding, prepared.data)
    made = int8.quantise(prepared.report.path, path, prepared.feeds(most), method)
    if decoding is None:
        return made
    return replace(made, scores_float=scores(prepared, prepared.report.path), scores=scores(prepared, path))


def scores(prepared: Prepared, file: Path) -> DetectionScores:
    """The mAP of a file with the ports of `prepared`. Raises ExportError where its labels are not the data set's."""
    decoding = prepared.report.decoding
    assert decoding is not None
    offset = _offset(decoding, prepared.data)
    meanings = {port.name: port.meaning for port in prepared.report.outputs}
    rules: Any = asdict(decoding) | {"score_threshold": min(decoding.score_threshold, _LEAST_SCORE)}
    session = parity.open_session(file)
    judge = DetectionEvaluator(prepared.data.classes)
    names = [port.name for port in prepared.report.outputs]
    height, width = prepared.size
    for index in range(len(prepared.data)):
        feed, placed = prepared.feed(index)
        outputs = dict(zip(names, session.run(names, dict(feed)), strict=True))
        found = detections.detect(outputs, meanings, rules, (width, height))[0]
        result = {"boxes": placed.back(found.boxes), "scores": found.scores, "labels": found.labels + offset}
        judge.update([result], [prepared.data.target(index)])
    return judge.compute()


def _offset(decoding: Decoding, data: DetectionDataset) -> int:
    """What makes the data set's labels, which begin at 1, of the model's."""
    count, least = len(decoding.classes), min(decoding.classes)
    if count != len(data.classes) or decoding.classes != tuple(range(least, least + count)):
        raise ExportError(
            "the model's classes are not those of the data set",
            seen=f"{count} classes in the model, {len(data.classes)} in the data",
            mend="give the data set whose classes the model was trained on, in the same order",
        )
    return 1 - least
