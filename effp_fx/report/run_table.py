"""The report of a training run as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from effp_fx.evaluate.detection import DetectionScores
from effp_fx.report.prune_report import file_list
from effp_fx.report.run_report import RunReport
from effp_fx.report.terminal import Bar, amount, percent, table


def run_table(found: RunReport) -> RenderableType:
    """Costs before and after, mAP, time, ONNX, files."""
    parts: list[RenderableType] = [_costs(found), Text(""), _scores(found), Text("")]
    lines = [
        f"{found.model}: {len(found.classes)} classes, {found.images} images, {found.steps} steps "
        f"in {found.seconds / 60:.1f} min"
    ]
    if found.map_difference is not None:
        lines.append(f"masked and compact: {verdict(found)} (judged in {found.judged_in})")
    if found.onnx_error is not None:
        lines.append(f"ONNX Runtime against PyTorch: largest relative error {found.onnx_error:.1e}")
    if found.speedup is not None:
        lines.append(speed(found))
    if found.problems:
        lines.append("left out of the data: " + ", ".join(f"{n} x {kind}" for kind, n in found.problems.items()))
    return Group(*parts, Text("\n".join(lines)), Text(""), file_list(found.files))


def verdict(found: RunReport) -> str:
    """Whether masked and compact network find the same."""
    difference = found.map_difference or 0.0
    return f"mAP equal to {difference:.0e}" if difference <= 1e-6 else f"mAP DIFFERS by {difference:.1e}"


def speed(found: RunReport) -> str:
    """Latencies and their ratio."""
    times = ", ".join(f"{name} {value:.2f} ms" for name, value in found.milliseconds.items())
    return f"ONNX Runtime on this CPU, one thread, in turns: {times}; {found.speedup:.2f} times as fast"


def scores_table(scores: DetectionScores, seconds: float) -> RenderableType:
    """COCO's and VOC's mAP, and each class."""
    made = table("measure", ">mAP", title=f"{scores.images} images, {scores.objects} objects, {seconds:.1f} s")
    rows = {
        "COCO, IoU .5 to .95": scores.map,
        "COCO, IoU .5": scores.map50,
        "COCO, IoU .75": scores.map75,
        "COCO, small objects": scores.map_small,
        "COCO, middling objects": scores.map_medium,
        "COCO, large objects": scores.map_large,
        "VOC, area under the curve": scores.voc,
        "VOC 2007, 11 points": scores.voc07,
    }
    for name, value in rows.items():
        made.add_row(name, part(value))
    classes = table("class", ">.5 to .95", ">.5", "")
    for name, value in scores.per_class.items():
        bar = Bar(1.0, value) if math.isfinite(value) else ""
        classes.add_row(name, part(value), part(scores.per_class50[name]), bar)
    return Group(made, Text(""), classes)


def part(value: float) -> str:
    """An average precision, or a dash where there was nothing to find."""
    return f"{value:.4f}" if math.isfinite(value) else "-"


def _costs(found: RunReport) -> Table:
    made = table("", ">dense", ">compact", ">kept", ">target", "")
    for name, title, before, after in (
        ("flops", "FLOPs", found.flops, found.flops_after),
        ("params", "parameters", found.params, found.params_after),
    ):
        share = after / before if before else 1.0
        shown = [amount(before), amount(after), percent(share), _target(found.targets, name)]
        made.add_row(title, *shown, Bar(1.0, share))
    return made


def _target(targets: Mapping[str, float], name: str) -> str:
    if name not in targets:
        return "-"
    return percent(targets[name]) if targets[name] <= 1 else amount(targets[name])


def _scores(found: RunReport) -> Table:
    made = table("network", ">mAP .5 to .95", ">mAP .5", ">VOC mAP", title=f"{found.judged_images} validation images")
    for name, scores in found.scores.items():
        made.add_row(name, *(f"{value:.6f}" for value in (scores.map, scores.map50, scores.voc)))
    return made
