"""Exports detectors, dense and pruned to half their FLOPs, part by part, and writes docs/results/export.md and .json.

Each row is kept as soon as it is there: a run that is cut off goes on where it stopped, with `--again` from the start.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import effp_fx
from benchmarks import export_page, export_scenes, machine
from benchmarks.export_models import RANDOM, Subject
from benchmarks.export_trained import TRAINED, Trained
from effp_fx import atomic_file
from effp_fx.errors import EffpError
from effp_fx.export import ExportReport
from effp_fx.export.report import PARTS, TARGETS
from effp_fx.export.tensorrt import check_tensorrt
from effp_fx.inputs import Example

RESULTS = Path("docs/results/export.json")
PAGE = Path("docs/results/export.md")
OPSET = 17
SUBJECTS: tuple[Subject | Trained, ...] = (*RANDOM, *TRAINED)
PACKAGES = ("torch", "torchvision", "ultralytics", "transformers", "onnx", "onnxruntime", "onnxsim")
Row = dict[str, Any]


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="names of models, all where none is given")
    parser.add_argument("--kinds", nargs="*", default=["dense", "pruned"], help="dense, pruned or both")
    parser.add_argument("--again", action="store_true", help="measure what is there already too")
    parser.add_argument("--page-only", action="store_true", help="write the page from the results that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"rows": []}
    wanted = [subject for subject in SUBJECTS if not options.only or subject.name in options.only]
    rows: list[Row] = kept["rows"]
    for subject in [] if options.page_only else wanted:
        done = {row["kind"] for row in rows if row["model"] == subject.name}
        for kind in options.kinds:
            if kind in done and not options.again:
                continue
            rows = [row for row in rows if (row["model"], row["kind"]) != (subject.name, kind)]
            rows += measure(subject, kind)
            kept = {"facts": machine.describe(PACKAGES) | _measured(rows), "rows": sorted(rows, key=_place)}
            atomic_file.write(RESULTS, (json.dumps(kept, indent=1) + "\n").encode())
    atomic_file.write(PAGE, export_page.page(kept.get("facts", {}), kept["rows"]).encode())


def _measured(rows: list[Row]) -> dict[str, str]:
    count = len({(row["model"], row["kind"]) for row in rows})
    return {
        "command": "python -m benchmarks.export --only NAME --kinds KIND",
        "networks": f"{count} of {2 * len(SUBJECTS)} measured, each in a run of its own",
    }


def _place(row: Row) -> tuple[int, int, int]:
    names = [subject.name for subject in SUBJECTS]
    return names.index(row["model"]), ("dense", "pruned").index(row["kind"]), PARTS.index(row["part"])


def measure(subject: Subject | Trained, kind: str) -> list[Row]:
    """A row for each part of one network."""
    common: Row = {"model": subject.name, "spec": subject.spec, "kind": kind, "side": subject.side}
    try:
        network, example = subject.network(kind)
    except EffpError as error:
        return [common | {"part": part, "refused": error.what, "why": error.seen} for part in PARTS]
    rows: list[Row] = []
    for part in PARTS:
        begin = time.perf_counter()
        row = common | {"part": part} | exported(network, example, part, subject.truth)
        rows.append(row | {"seconds": round(time.perf_counter() - begin, 1)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def exported(model: nn.Module, example: Example, part: str, truth: str) -> Row:
    """What one export reports, what TensorRT's tables say of the file, and how it does on drawn scenes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            report = effp_fx.export_onnx(model, path, example, part=part, opset=OPSET)
        except EffpError as error:
            return {"refused": error.what, "why": error.seen}
        found = facts(report) | {"tensorrt": {target: verdict(path, target) for target in TARGETS[1:]}}
        if part == "full":
            found["scenes"] = asdict(export_scenes.judge(model, example, path, report, truth))
        return found


def facts(report: ExportReport) -> Row:
    """The numbers of a report."""
    return {
        "opset": report.opset,
        "nodes_before": report.nodes_before,
        "nodes": report.nodes_after,
        "initialisers": report.initialisers,
        "bytes": report.bytes,
        "outputs": [str(port) for port in report.outputs][:8],
        "relative": max(report.max_relative_error.values()),
        "absolute": max(report.max_absolute_error.values()),
        "noise": max((report.float64_noise or {"": 0.0}).values()),
        "detections": report.detections,
        "notes": list(report.notes),
    }


def verdict(path: Path, target: str) -> Row:
    """The worst verdict, how many nodes have each, and the share of the layers that the DLA takes."""
    found = check_tensorrt(path, target)
    return {
        "verdict": str(found.verdict),
        "counts": {str(name): count for name, count in found.counts.items() if count},
        "dla": {name: summary.macs_share for name, summary in found.dla.items()},
    }


if __name__ == "__main__":
    main()
