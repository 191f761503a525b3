"""The books of a run as CSV, written anew after each epoch, so that a run that goes on leaves no line twice."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effp_fx import atomic_file
from effp_fx.report.run_report import EpochRow
from effp_fx.session import Update

EPOCHS, UPDATES = "epochs.csv", "updates.csv"
FILES = {"epochs": EPOCHS, "updates of the mask": UPDATES}


def write(folder: Path, rows: Sequence[EpochRow], updates: Sequence[Update]) -> None:
    """Write one line an epoch, and one an update of the mask with the channels kept of each group."""
    atomic_file.write(folder / EPOCHS, _csv([_epoch(row) for row in rows]))
    if updates:
        atomic_file.write(folder / UPDATES, _csv([_update(update) for update in updates]))


def _epoch(row: EpochRow) -> dict[str, Any]:
    return {
        "epoch": row.epoch,
        "step": row.step,
        "seconds": round(row.seconds, 3),
        "learning_rate": row.rate,
        "loss": row.loss,
        **{f"loss_{name}": value for name, value in row.losses.items()},
        "flops": row.flops,
        "params": row.params,
        "mask_final": int(row.final),
        "map": row.map,
        "map50": row.map50,
    }


def _update(update: Update) -> dict[str, Any]:
    found = update.to_dict()
    kept = found.pop("kept")
    return {**found, "final": int(update.final), **{f"kept_{name}": count for name, count in kept.items()}}


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
