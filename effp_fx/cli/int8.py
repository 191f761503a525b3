"""What `effp-fx export --int8` does: a second file with INT8 layers, and both judged on the data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

Int8 = Annotated[
    str | None, typer.Option("--int8", metavar="qdq", help="Write an INT8 file too (QDQ nodes); needs --data.")
]
Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="With --int8: a VOC, COCO or YOLO data set.")]
Split = Annotated[str, typer.Option("--split", help="With --int8: the split of the data set.")]
Method = Annotated[
    str, typer.Option("--calibrate", metavar="METHOD", help="With --int8: entropy, percentile or minmax.")
]


@dataclass(frozen=True)
class Int8Options:
    """How the file is quantised."""

    data: Path
    split: str = "val"
    method: str = "entropy"

    def write(self, model: nn.Module, exported: Any, step: Any) -> Any:
        """Write `model.int8.onnx` beside `model.onnx`; returns the quantiser's report."""
        # onnx and the quantiser take a while to import, and most commands do without them.
        from effp_fx.data import open_dataset
        from effp_fx.export.data_set import Prepared, quantised
        from effp_fx.export.handoff import preprocessing

        step("quantise, and run both files on the data set")
        prepared = Prepared(exported, open_dataset(self.data, self.split), preprocessing.of_family(model)[0])
        return quantised(prepared, exported.path.with_suffix(".int8.onnx"), self.method)


def options(kind: str | None, data: Path | None, split: str, method: str) -> Int8Options | None:
    """The options, None where no INT8 was asked for. Raises typer.BadParameter for what does not go together."""
    if kind is None:
        if data is not None:
            raise typer.BadParameter("--data belongs to --int8")
        return None
    if kind != "qdq":
        raise typer.BadParameter(f"{kind!r} is not known; qdq is", param_hint="--int8")
    if data is None:
        raise typer.BadParameter("--int8 needs --data: ranges are measured on pictures", param_hint="--int8")
    return Int8Options(data, split, method)
