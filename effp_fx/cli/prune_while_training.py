"""`effp-fx prune yolo.pt --data data.yaml --epochs N`: a YOLO trained by Ultralytics and pruned in the same run."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml

from effp_fx.errors import DataError
from effp_fx.integrations.ultralytics import prune_trainer
from effp_fx.models.spec import import_family, unknown_name

_FAMILY = "ultralytics:"


def train_and_prune(
    name: str, data: str, epochs: int, out: Path, settings: list[str], resume: bool, **session_options: Any
) -> dict[str, Any]:
    """Train into a folder; the compact checkpoints lie in its `weights`. Returns what --json prints.

    Args:
        name: a .yaml or a .pt, `ultralytics:` before it or not.
        data: a data.yaml, or a folder for classifiers.
        epochs: of the training.
        out: the folder of the run.
        settings: `NAME=VALUE`, arguments of Ultralytics' `train`.
        resume: go on from the last.pt in the folder.
        session_options: of `prune_trainer`.

    Raises:
        typer.BadParameter: a setting without `=`.
        ModelNameError: this is no model of Ultralytics.
        DataError: there is no such data.yaml; before anything is written.
        SessionError: see `prune_trainer`.
    """
    name = name.removeprefix(_FAMILY)
    if Path(name).suffix not in (".pt", ".yaml", ".yml"):
        raise unknown_name("ultralytics", name, ["yolo11n.yaml", "yolov8n.yaml", "a .pt of yours"])
    arguments = _read(settings)
    _check_data(data)
    last = out / "weights" / "last.pt"
    with _told_to_stderr():
        yolo = import_family("ultralytics", "ultralytics").YOLO(str(last) if resume else name)
        pruning = prune_trainer(yolo, **session_options)
        place = {"project": str(out.resolve().parent), "name": out.name, "exist_ok": True}
        whole = {"resume": True} if resume else {"epochs": epochs, **place}
        metrics = yolo.train(data=data, **{**whole, **arguments})
    return {
        "model": name,
        "best": str(pruning.best),
        "last": str(pruning.last),
        "flops": pruning.flops,
        "params": pruning.params,
        "metrics": {key: float(value) for key, value in metrics.results_dict.items()},
    }


def _check_data(data: str) -> None:
    checks = import_family("ultralytics.utils.checks", "ultralytics")
    # Its own rule: a file, an address, or a name that it ships. Folders of classifiers are its trainer's to find.
    if Path(data).suffix in (".yaml", ".yml") and not checks.check_yaml(data, hard=False):
        raise DataError(
            "there is no such data set",
            where="--data",
            seen=data,
            expected="a data.yaml, or a name that Ultralytics ships, such as coco8.yaml",
        )


def _read(settings: list[str]) -> dict[str, Any]:
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"{setting!r} is not NAME=VALUE", param_hint="--set")
        found[key] = yaml.safe_load(value)
    return found


@contextlib.contextmanager
def _told_to_stderr() -> Iterator[None]:
    """Ultralytics tells on standard output what it does; that is kept for the result."""
    logger: logging.Logger = import_family("ultralytics.utils", "ultralytics").LOGGER
    handlers = [one for one in logger.handlers if isinstance(one, logging.StreamHandler)]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
