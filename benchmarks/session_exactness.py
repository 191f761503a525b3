"""Trains detectors with a session for 20 updates and compares masked and compact; docs/results/session_exactness.md.

    python -m benchmarks.session_exactness
    python -m benchmarks.session_exactness --specs ultralytics:yolov8n.yaml

Each detector starts from random weights and takes 26 steps with SGD (momentum 0.9, weight decay) on two drawn scenes
a batch and its own losses, running statistics with a momentum of 0.3; after steps 2 to 22 the session chooses the
mask 20 times, for at most half the FLOPs and half the parameters. Then the trained model itself, whose zeros are the
mask, is compared in float64 with what `session.compact()` returns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import effp_fx
from benchmarks import isolated, machine
from benchmarks.session_subject import Samples, Subject, scenes, subject
from effp_fx.cost import Cost
from effp_fx.data.shapes import CLASSES
from effp_fx.evaluate.detection import DetectionEvaluator

SPECS = {
    "effp:ssd300_vgg16_bn": 300,
    "effp:ssd300_resnet50": 300,
    "torchvision:ssdlite320_mobilenet_v3_large": 320,
    "torchvision:fcos_resnet50_fpn?min_size=128&max_size=128": 128,
    "ultralytics:yolov8n.yaml": 128,
    "ultralytics:yolo11n.yaml": 128,
}
"""Model spec -> side of the images, pixels."""
STEPS, UPDATES = 26, 20
JUDGED = 6
MOMENTUM = 0.3
"""Of batch norms: with the 0.03 of some, statistics of 26 steps are those of no network, and all places look alike."""
ROOT = Path(__file__).resolve().parent.parent


def measure(spec: str, size: int) -> dict[str, Any]:
    """Train, compact, compare: one row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        samples = scenes(Path(folder), size, 12)
    made = subject(spec, size)
    begin = time.perf_counter()
    session, not_held = trained(made, samples)
    small = session.compact()
    masked, compact = made.model.double().eval(), small.double().eval()
    return {
        "flops": session.flops,
        "params": session.params,
        "left": {name: left(session, cost) for name, cost in session._costs.items()},
        "updates": len(session.history),
        "regrown": sum(update.regrown for update in session.history),
        "not_held": not_held,
        **compared(made, masked, compact, samples[:JUDGED]),
        "seconds": time.perf_counter() - begin,
    }


def trained(made: Subject, samples: Samples) -> tuple[effp_fx.Session, int]:
    """The session after all steps, and how often a parameter that was off was not exactly zero after a step."""
    model = made.model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = MOMENTUM
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    session = effp_fx.Session(
        *(model, optimizer, STEPS),
        target_flops=0.5,
        target_params=0.5,
        start=0.08,
        end=0.85,
        updates=UPDATES,
        regrow_by="random",
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    not_held = 0
    for step in range(STEPS):
        first = 2 * step % len(samples)
        optimizer.zero_grad()
        made.loss(model, samples[first : first + 2]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        not_held += leaks(session)
    return session, not_held


def leaks(session: effp_fx.Session) -> int:
    """Parameters that a channel that is off has values in."""
    count = 0
    for name, dims in session.analysis.tensors.items():
        value = session._tensors[name].detach()
        for dim in dims.masked if dims.is_parameter else ():
            rows = np.flatnonzero((dims.dims[dim] >= 0) & ~session.keep[dims.dims[dim]])
            count += bool(value.index_select(dim, torch.from_numpy(rows)).count_nonzero())
    return count


def left(session: effp_fx.Session, cost: Cost) -> float:
    """How much of the target is unused, in units of the costliest channel (or block of them) that is off."""
    steps = cost.marginal(session.keep)
    dearest = max(
        float(steps[group.start : group.stop][~session.keep[group.start : group.stop]].max(initial=0.0))
        * group.multiple_of
        for group in session.analysis.groups
    )
    return (0.5 * cost.dense - cost(session.keep)) / dearest


@torch.no_grad()
def compared(made: Subject, masked: nn.Module, compact: nn.Module, samples: Samples) -> dict[str, Any]:
    """Detections of both, one by one, and their average precisions."""
    judges = DetectionEvaluator(CLASSES), DetectionEvaluator(CLASSES)
    worst, detections, differing = 0.0, 0, 0
    for image, target in samples:
        pair = [made.detect(model, image.double()) for model in (masked, compact)]
        for judge, found in zip(judges, pair, strict=True):
            judge.update([found], [target])
        detections += len(pair[0]["scores"])
        if len(pair[0]["scores"]) != len(pair[1]["scores"]):
            differing += 1
            continue
        worst = max(worst, _distance(*pair))
    scores = [judge.compute() for judge in judges]
    return {
        "detections": detections,
        "images_of_other_length": differing,
        "error": worst,
        "map": [score.map for score in scores],
        "map50": [score.map50 for score in scores],
    }


def _distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """How far a detection of either is from the nearest of the other, at most: scores that tie may swap places."""
    if not len(one["scores"]):
        return 0.0
    columns = []
    for found in (one, two):
        parts = [found[key].double().reshape(len(found["scores"]), -1) for key in ("boxes", "scores", "labels")]
        largest = [one[key].double().abs().max().clamp_min(1e-12) for key in ("boxes", "scores", "labels")]
        columns.append(torch.cat([part / scale for part, scale in zip(parts, largest, strict=True)], dim=1))
    apart = (columns[0][:, None] - columns[1][None]).abs().amax(dim=-1)
    return float(max(apart.amin(dim=0).max(), apart.amin(dim=1).max()))


def page(facts: dict[str, str], rows: dict[str, dict[str, Any]]) -> str:
    """The Markdown page."""
    head = (
        "detector | input | FLOPs kept | parameters kept | unused, in channels: FLOPs | parameters | updates"
        " | regrown | off but not zero | detections | largest relative error | mAP masked | mAP compact"
    )
    lines = [f"| {head} |", "| --- |" + " --: |" * head.count("|")]
    for spec, row in rows.items():
        size = SPECS.get(spec, 0)
        if "status" in row:
            lines.append(f"| `{spec}` | {size} | {row['status']}: {row.get('message', '')}" + " |" * 11)
            continue
        other = row["images_of_other_length"]
        count = str(row["detections"]) + (f" ({other} images differ in number)" if other else "")
        cells = [
            f"`{spec}`",
            f"{size}",
            f"{row['flops']:.6f}",
            f"{row['params']:.6f}",
            *(f"{row['left'][name]:.2f}" for name in ("flops", "params")),
            f"{row['updates']}",
            f"{row['regrown']}",
            f"{row['not_held']}",
            count,
            f"{row['error']:.1e}",
            *(f"{value:.6f}" for value in row["map"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    about = (__doc__ or "").split("\n\n")[2].strip().replace("\n", " ")
    note = (
        "Both targets are 0.5. Unused: what is left below a target over what the costliest channel that is off would"
        " cost; below 1 means that the target is met within one channel. Off but not zero: parameters of channels that"
        " are off with a value other than 0, counted after every step. The detectors are random weights after 26"
        " steps, so their mAP is near 0; the detections of masked and compact are therefore compared one by one as"
        f" well, in float64, on {JUDGED} scenes: boxes, scores and labels, relative to the largest, each with its"
        " nearest of the other network's, for where scores tie the order may differ. Before that,"
        " `compact()` itself has compared all outputs, and all that detections are chosen among, within 1e-9, or there"
        " would be no row."
    )
    return (
        "\n\n".join(["# Masked and compact after 20 updates", machine.as_markdown(facts), about, note])
        + "\n\n"
        + "\n".join(lines)
        + "\n"
    )


def main() -> None:
    """Measure and write the page; with --one, one detector in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specs", nargs="*", default=list(SPECS), help="those of them to measure anew")
    parser.add_argument("--limit", type=float, default=1800.0, metavar="SECONDS", help="time for one detector")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    parser.add_argument("--one", metavar="SPEC", help="measure this one in this process")
    parser.add_argument("--json", type=Path, help="with --one: write the row there")
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        text = json.dumps(measure(options.one, SPECS[options.one]))
        if options.json:
            options.json.write_text(text, encoding="utf-8")
        print(text)
        return
    results = options.docs / "results"
    results.mkdir(parents=True, exist_ok=True)
    kept = results / "session_exactness.json"
    rows = json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept.exists() else {}
    for spec in options.specs:
        rows[spec] = isolated.run("benchmarks.session_exactness", ["--one", spec], limit_s=options.limit)
        print(spec, rows[spec], file=sys.stderr, flush=True)
        facts = machine.describe(("torch", "torchvision", "ultralytics"))
        ordered = {name: rows[name] for name in SPECS if name in rows}
        kept.write_text(json.dumps({"machine": facts, "rows": ordered}, indent=1) + "\n", encoding="utf-8")
        (results / "session_exactness.md").write_text(page(facts, ordered), encoding="utf-8")


if __name__ == "__main__":
    main()
