"""What a session costs: time of its steps over plain ones, and peak memory; writes docs/results/session_cost.md.

    python -m benchmarks.session_cost
    python -m benchmarks.session_cost --specs ultralytics:yolov8n.yaml --pairs 9

Two copies of a detector, one with a session and one without, take turns at the same batch: plain, session, session,
plain, and so on. Times are CPU seconds of one thread (`time.process_time`), ratios are medians, so that what else runs
on the machine counts little. Memory is the largest resident size of a process of its own while it trains, set-up left
out, with as many updates as there are steps, so that what the session puts aside is in it; the C library is told to
give back whatever large block is freed, for what it keeps differs by a tenth from one run to the next.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import effp_fx
from benchmarks import isolated, machine
from benchmarks.session_subject import Samples, Subject, scenes, subject

SPECS = {"ultralytics:yolov8n.yaml": ((320, 8), (320, 16)), "effp:ssd300_vgg16_bn": ((300, 2), (300, 4))}
"""Model spec -> side of the images in pixels and images a batch, for time and for memory."""
PHASES = ("before the first update", "between updates", "mask fixed")
STEPS = 9
"""Of the trainings whose memory is taken, with an update at each but the last."""
ROOT = Path(__file__).resolve().parent.parent


class Runner:
    """One copy of a detector with its optimizer, a session attached or not."""

    def __init__(self, spec: str, size: int, samples: Samples, **options: Any) -> None:
        self.made: Subject = subject(spec, size)
        self.samples = samples
        self.model = self.made.model.train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
        self.session: effp_fx.Session | None = None
        if options:
            targets = {"target_flops": 0.5, "target_params": 0.5}
            self.session = effp_fx.Session(self.model, self.optimizer, **targets, **options)
        self.hooks = 0.0
        """CPU seconds of the session's hooks in the last step."""
        self._time_hooks()

    def step(self) -> float:
        """One step of training; its CPU seconds."""
        self.hooks = 0.0
        begin = time.process_time()
        self.optimizer.zero_grad()
        self.made.loss(self.model, self.samples).backward()
        self.optimizer.step()
        return time.process_time() - begin

    def _time_hooks(self) -> None:
        """A hook before all others and one behind them, on both sides of the optimizer's step."""

        def start(*_: Any) -> None:
            self.hooks -= time.process_time()

        def stop(*_: Any) -> None:
            self.hooks += time.process_time()

        before, after = self.optimizer.register_step_pre_hook, self.optimizer.register_step_post_hook
        self.optimizer._optimizer_step_pre_hooks.move_to_end(before(start).id, last=False)
        self.optimizer._optimizer_step_post_hooks.move_to_end(after(start).id, last=False)
        before(stop)
        after(stop)


def times(spec: str, pairs: int) -> dict[str, Any]:
    """Medians in each phase: of plain steps, of the ratio of the two, of the hooks; and of the hooks at an update."""
    size, batch = SPECS[spec][0]
    samples = drawn(size, batch)
    plain = Runner(spec, size, samples)
    # A third of the steps in each phase, the first of each left out of the medians; the two updates lie between.
    pruned = Runner(spec, size, samples, total_steps=3 * (pairs + 1), start=1 / 3, end=2 / 3, updates=2)
    session = pruned.session
    assert session is not None
    plain.step()
    rows: dict[str, list[tuple[float, float, float]]] = {phase: [] for phase in PHASES}
    updates = []
    for number in range(session.schedule.total_steps):
        first = number % 2 == 0
        before = plain.step() if first else 0.0
        taken = pruned.step()
        before = before if first else plain.step()
        if session.schedule.is_update(session.step):
            updates.append(pruned.hooks)
        elif number:
            rows[PHASES[min(len(session.history), 2)]].append((before, taken, pruned.hooks))
    return {
        "plain": statistics.median(before for found in rows.values() for before, _, _ in found),
        "phases": {
            phase: {"ratio": statistics.median(taken / before for before, taken, _ in found)}
            for phase, found in rows.items()
        },
        "hooks": {phase: statistics.fmean(hooks for _, _, hooks in found) for phase, found in rows.items()},
        "update": statistics.median(updates),
    }


def memory(spec: str, with_session: bool) -> dict[str, float]:
    """MiB: resident before there is a model, most of it while training, and most of it in all."""
    size, batch = SPECS[spec][1]
    give_back()
    base = resident("VmRSS")
    options = {"total_steps": STEPS, "start": 0.0, "end": (STEPS - 1) / STEPS, "updates": STEPS - 1}
    runner = Runner(spec, size, drawn(size, batch), **options if with_session else {})
    whole = isolated.peak_mebibytes()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of the set-up
    for _ in range(STEPS):
        runner.step()
    training = resident("VmHWM")
    return {"base": base, "training": training, "whole": max(whole, training)}


def give_back() -> None:
    """Let glibc give back what is freed in blocks of a MiB or more; left to itself it keeps ever larger ones."""
    threshold = -3  # M_MMAP_THRESHOLD
    ctypes.CDLL(None).mallopt(threshold, 2**20)


def resident(what: str) -> float:
    """MiB, of the kernel's line of that name about this process: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def drawn(size: int, batch: int) -> Samples:
    """A batch of scenes."""
    with tempfile.TemporaryDirectory() as folder:
        return scenes(Path(folder), size, batch)


def page(facts: dict[str, str], rows: dict[str, dict[str, Any]]) -> str:
    """The Markdown page."""
    head = "| detector | input | batch | plain step, s | " + " | ".join(f"{phase}: ratio | hooks" for phase in PHASES)
    head += " | an update, s |"
    lines = [head, "| --- |" + " --: |" * (head.count("|") - 2)]
    memories = [
        "| detector | input | batch | plain, MiB | session, MiB | ratio | with set-up, MiB |",
        "| --- |" + " --: |" * 6,
    ]
    for spec, row in rows.items():
        (size, batch), (side, many) = SPECS[spec]
        if "time" in row and "phases" in row["time"]:
            found = row["time"]
            cells = [f"`{spec}`", str(size), str(batch), f"{found['plain']:.2f}"]
            for phase in PHASES:
                hooks, ratio = found["hooks"][phase], found["phases"][phase]["ratio"]
                cells += [f"{ratio:.3f}", f"{1e3 * hooks:.1f} ms, {hooks / found['plain']:.2%}"]
            lines.append("| " + " | ".join([*cells, f"{found['update']:.2f}"]) + " |")
        if all("training" in row.get(kind, {}) for kind in ("plain", "session")):
            plain, session = (row[kind]["training"] - row[kind]["base"] for kind in ("plain", "session"))
            whole = f"{row['plain']['whole']:.0f} and {row['session']['whole']:.0f}"
            ratio = f"{session / plain:.3f}"
            memories.append(f"| `{spec}` | {side} | {many} | {plain:.0f} | {session:.0f} | {ratio} | {whole} |")
    about = (__doc__ or "").split("\n\n")[2].strip().replace("\n", " ")
    note = (
        "Ratio: the median, over the pairs, of the session's step over the plain one beside it. Hooks: the CPU time of"
        " the session's hooks by themselves, the mean over the steps (the group penalty comes at every eighth), and as"
        " a part of a plain step; it is all that a session adds, for the model computes the same, and it hardly depends"
        " on images or batch. Updates are few in a session; what the hooks take at one is given apart. Memory is what"
        " a process has beyond the interpreter and its libraries; with set-up, all of it at its largest."
    )
    parts = ["# What a session costs", machine.as_markdown(facts), about, "## Time", "\n".join(lines), note]
    return "\n\n".join([*parts, "## Memory", "\n".join(memories)]) + "\n"


def main() -> None:
    """Measure and write the page; with --one, one measurement in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specs", nargs="*", default=list(SPECS), help="those of them to measure anew")
    parser.add_argument("--pairs", type=int, default=8, help="of steps in each phase")
    parser.add_argument("--limit", type=float, default=3000.0, metavar="SECONDS", help="time for one measurement")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "SPEC"), help="time, plain or session, in this process")
    parser.add_argument("--json", type=Path, help="with --one: write the numbers there")
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        what, spec = options.one
        found = times(spec, options.pairs) if what == "time" else memory(spec, what == "session")
        if options.json:
            options.json.write_text(json.dumps(found), encoding="utf-8")
        print(json.dumps(found))
        return
    results = options.docs / "results"
    results.mkdir(parents=True, exist_ok=True)
    kept = results / "session_cost.json"
    rows = json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept.exists() else {}
    for what in ("time", "plain", "session"):
        for spec in options.specs:
            arguments = ["--one", what, spec, "--pairs", str(options.pairs)]
            rows.setdefault(spec, {})[what] = isolated.run("benchmarks.session_cost", arguments, limit_s=options.limit)
            print(spec, what, rows[spec][what], file=sys.stderr, flush=True)
            facts = machine.describe(("torch", "torchvision", "ultralytics"))
            kept.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
            (results / "session_cost.md").write_text(page(facts, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
