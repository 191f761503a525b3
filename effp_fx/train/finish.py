"""The end of a run: the compact network, judged, exported and timed beside the masked one; the report and its files."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from effp_fx import atomic_file, cost, models, store, weights_file
from effp_fx.evaluate.detection import DetectionScores
from effp_fx.evaluate.latency import interleaved, onnx_call
from effp_fx.export import export_onnx
from effp_fx.inputs import Example, map_tensors
from effp_fx.report.run_page import run_page, run_pictures
from effp_fx.report.run_report import EpochRow, RunReport, Scores, UpdateRow, paths, run_json
from effp_fx.session import Session
from effp_fx.train.judging import judge
from effp_fx.train.task import Course, Task, judging_batches
from effp_fx.train.watch import Watch

SMALL, DENSE = "small.safetensors", "dense.safetensors"
REPORT, PAGE = "report.json", "report.html"
EQUAL = 1e-6
"""How near masked and compact have to be in mAP."""


@dataclass
class Made:
    """What the end of a run has made, by the names of the report."""

    flops: tuple[float, float]
    """Before and after."""
    params: tuple[float, float]
    scores: dict[str, Scores] = field(default_factory=dict)
    judged_in: str = "float32"
    onnx_error: float | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


def finish(
    task: Task,
    course: Course,
    session: Session | None,
    average: nn.Module | None,
    rows: Sequence[EpochRow],
    files: Mapping[str, Path],
    watch: Watch,
) -> RunReport:
    """Make what a run is made for, and write it.

    Args:
        task: what was asked for.
        course: the trained model, and the data.
        session: None for a dense run.
        average: its moving average, which is deployed where there is one.
        rows: the epochs.
        files: what has been written already.
        watch: told each step.

    Raises:
        VerificationError, ExportError: the compact network is not what it should be; checkpoints are there.
    """
    trained = course.model if average is None else average
    made = _dense(task, course, trained, watch) if session is None else _compact(task, course, session, average, watch)
    found = RunReport(
        model=course.spec,
        classes=course.classes,
        images=len(course.trained_on),
        judged_images=len(course.judged_on),
        steps=rows[-1].step,
        seconds=rows[-1].seconds,
        flops=made.flops[0],
        params=made.params[0],
        flops_after=made.flops[1],
        params_after=made.params[1],
        targets=_targets(session),
        scores=made.scores,
        judged_in=made.judged_in,
        onnx_error=made.onnx_error,
        milliseconds=made.milliseconds,
        problems=_problems(course),
        rows=tuple(rows),
        updates=_updates(session),
        files=paths({**made.files, **files, "report": task.out / PAGE, "report as JSON": task.out / REPORT}),
    )
    for name, picture in run_pictures(found).items():
        atomic_file.write(task.out / name, picture.encode())
    atomic_file.write(task.out / REPORT, (json.dumps(run_json(found), indent=2) + "\n").encode())
    atomic_file.write(task.out / PAGE, run_page(found).encode())
    return found


def _compact(task: Task, course: Course, session: Session, average: nn.Module | None, watch: Watch) -> Made:
    watch.note("compact the network and compare it with the masked one")
    small = session.compact(average)
    masked = session.masked(course.model if average is None else average)
    flops, params = cost.flops(session.analysis), cost.params(session.analysis)
    made = Made(
        (flops.dense, float(flops(session.keep))),
        (params.dense, float(params(session.keep))),
        files={"compact model": store.save(small, task.out / SMALL, built_from=course.spec)},
    )
    watch.note("judge the masked and the compact network")
    _judge_both(made, task, course, {"masked": masked, "compact": small})
    _export(made, task, course, {"masked": masked, "compact": small}, watch)
    return made


def _judge_both(made: Made, task: Task, course: Course, networks: dict[str, nn.Module]) -> None:
    """In float32; where rounding has put a score on the other side of another one, in float64 again."""
    for dtype in (torch.float32, torch.float64):
        found = {
            name: _score(task, course, network if dtype == torch.float32 else copy.deepcopy(network).double())
            for name, network in networks.items()
        }
        made.scores, made.judged_in = found, str(dtype).removeprefix("torch.")
        masked, compact = found["masked"], found["compact"]
        if max(abs(masked.map - compact.map), abs(masked.map50 - compact.map50)) <= EQUAL:
            return


def _dense(task: Task, course: Course, trained: nn.Module, watch: Watch) -> Made:
    flops, params = _flops(trained, course.example), float(sum(p.numel() for p in trained.parameters()))
    notes = {"built_from": course.spec, "classes": json.dumps(course.classes)}
    made = Made((flops, flops), (params, params))
    made.files["dense model"] = weights_file.write(task.out / DENSE, trained.state_dict(), notes)
    made.scores["dense"] = _score(task, course, trained)
    _export(made, task, course, {"dense": trained}, watch)
    return made


def _score(task: Task, course: Course, network: nn.Module) -> Scores:
    found: DetectionScores = judge(network, judging_batches(task, course.judged_on), course.classes)
    return Scores(found.map, found.map50, found.voc)


def _export(made: Made, task: Task, course: Course, networks: Mapping[str, nn.Module], watch: Watch) -> None:
    """ONNX on the CPU, whatever the run was trained on: latencies are measured in one run, in turns, on one thread.

    A network that takes less than a millisecond would wait for further threads to wake longer than it computes.
    """
    calls = {}
    for name, network in networks.items():
        path = task.out / f"{'small' if name == 'compact' else name}.onnx"
        watch.note(f"export the {name} network")
        example = None if course.example is None else map_tensors(lambda tensor: tensor.cpu(), course.example)
        made.onnx_error = export_onnx(copy.deepcopy(network).cpu().eval(), path, example).worst
        made.files[f"ONNX, {name}"] = path
        calls[name] = onnx_call(path, threads=1)
    watch.note("time it in ONNX Runtime")
    made.milliseconds = {taken.name: 1e3 * taken.median for taken in interleaved(calls, rounds=50, most_seconds=15)}


def _flops(model: nn.Module, example: Example | None) -> float:
    given: Any = example or models.example_for(model)
    model.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(*given.args, **given.kwargs)
    return float(counter.get_total_flops())


def _problems(course: Course) -> dict[str, int]:
    both = (course.trained_on.report, course.judged_on.report)
    return dict(Counter(problem.kind for report in both for problem in report.problems))


def _targets(session: Session | None) -> dict[str, float]:
    if session is None:
        return {}
    asked = {"flops": session.targets.flops, "params": session.targets.params}
    return {name: value for name, value in asked.items() if value is not None}


def _updates(session: Session | None) -> tuple[UpdateRow, ...]:
    return tuple(
        UpdateRow(u.step, u.flops, u.params, dict(u.kept), u.pruned, u.regrown, u.pruning_loss)
        for u in (session.history if session is not None else ())
    )
