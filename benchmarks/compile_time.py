"""How long it takes from a model to a pruned one, effp_fx against Torch-Pruning; writes docs/results/compile_time.md.

    python -m benchmarks.compile_time
    python -m benchmarks.compile_time --sizes 50 500 --specs --repeats 3

effp_fx: capture, analysis, plan and lowering to half the FLOPs, the trial lowerings included, the final verification
not (shown apart). Torch-Pruning: the pruner with its graph, and one step of pruning with the recipe of its examples
at a pruning ratio that is given to it. The two take turns, every run in a process of its own on one thread, after a
small network to warm up. Times are processor seconds of that process (time.process_time), not seconds on the wall: the
machine is shared, and the time that others take is not counted. What remains of them, caches that they empty, both
tools bear alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import isolated, machine, torch_pruning_recipes, torch_pruning_rival
from benchmarks.zoo_models import zoo
from benchmarks.zoo_subject import subject
from effp_fx.bench.residual_chain import residual_chain
from effp_fx.inputs import Example

SIZES = (50, 500, 2000)
CHAIN = "residual:"  # residual:50 is the residual network of 50 convolutions
RATIO = 0.3  # of the channels: about half the multiply-accumulates
TOOLS = ("effp_fx", "torch_pruning")
OUR_STEPS = ("capture", "analysis", "trial", "plan", "lowering")
THEIR_STEPS = ("graph", "prune")
ROOT = Path(__file__).resolve().parent.parent


def build(name: str) -> tuple[nn.Module, Example]:
    """The model that a name stands for, and its inputs: residual:N, or a model spec."""
    if not name.startswith(CHAIN):
        model, example, _ = subject(name)
        return model, example
    torch.manual_seed(0)
    model, image = residual_chain(int(name.removeprefix(CHAIN)))
    return model, Example((image,))


def seconds_of(tool: str, name: str) -> dict[str, float]:
    """Seconds of each step of one tool on one model, in this process."""
    warm_up, measured = build(f"{CHAIN}12"), build(name)
    run = _ours if tool == "effp_fx" else _theirs
    run(*warm_up)
    return run(*measured)


def _ours(model: nn.Module, example: Example) -> dict[str, float]:
    from effp_fx import api

    return api.prune_reported(model, example, target_flops=0.5).seconds


def _theirs(model: nn.Module, example: Example) -> dict[str, float]:
    family = torch_pruning_recipes.family_of(model)
    torch_pruning_recipes.prepare(model, family)
    graph, prune = torch_pruning_rival.prune_once(model, example, family, "recipe", RATIO)
    return {"graph": graph, "prune": prune}


def measure(names: list[str], *, repeats: int, limit_s: float) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """name -> tool -> an answer a repeat. The tools take turns; one that failed or timed out is not asked again."""
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {name: {tool: [] for tool in TOOLS} for name in names}
    for repeat in range(repeats):
        for name in names:
            for tool in TOOLS if repeat % 2 == 0 else TOOLS[::-1]:
                if any("status" in answer for answer in answers[name][tool]):
                    continue
                arguments = ["--one", tool, name]
                answer = isolated.run("benchmarks.compile_time", arguments, limit_s=limit_s)
                answers[name][tool].append(answer)
                print(f"{repeat + 1}/{repeats}  {name}  {tool}  {answer}", file=sys.stderr, flush=True)
    return answers


def page(facts: dict[str, str], answers: dict[str, dict[str, list[dict[str, Any]]]], repeats: int) -> str:
    """The Markdown page: medians in seconds, range in brackets, ratios side by side."""
    head = [
        "model",
        *OUR_STEPS,
        "effp_fx",
        "verify",
        *(f"TP {step}" for step in THEIR_STEPS),
        "Torch-Pruning",
        "effp_fx / TP",
    ]
    lines = [_line(name, tools) for name, tools in answers.items()]
    rows = [head, ["---", *["--:"] * (len(head) - 1)], *lines]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = [
        f"- `{name}`, {tool}: {_failure(runs)}"
        for name, tools in answers.items()
        for tool, runs in tools.items()
        if _failure(runs)
    ]
    failed = "What did not finish:\n\n" + "\n".join(notes) if notes else ""
    title = "# From a model to a pruned model: time"
    parts = [title, machine.as_markdown({**facts, "repeats": str(repeats)}), _about(), table, _growth(answers), failed]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about() -> str:
    return (__doc__ or "").split("\n\n")[2].replace("\n", " ") + (
        " Medians over the repeats, smallest and largest in brackets; the verification is not in the sum."
        " Both are measured in the same run."
    )


def _line(name: str, tools: dict[str, list[dict[str, Any]]]) -> list[str]:
    ours, theirs = tools["effp_fx"], tools["torch_pruning"]
    total, other = totals(ours, OUR_STEPS), totals(theirs, THEIR_STEPS)
    ratio = f"{statistics.median(total) / statistics.median(other):.2f}" if total and other else "-"
    steps = [_median(ours, step) for step in OUR_STEPS]
    their_steps = [_median(theirs, step) for step in THEIR_STEPS]
    return [f"`{name}`", *steps, _spread(total), _median(ours, "verify"), *their_steps, _spread(other), ratio]


def _growth(answers: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Milliseconds a convolution against the number of convolutions: level where a tool is linear."""
    chains = [name for name in answers if name.startswith(CHAIN)]
    if len(chains) < 2:
        return ""
    head = ["tool", *(name.removeprefix(CHAIN) + " convolutions" for name in chains)]
    rows = [head, ["---", *["--:"] * len(chains)]]
    for tool, steps in zip(TOOLS, (OUR_STEPS, THEIR_STEPS), strict=True):
        sums = [(totals(answers[name][tool], steps), int(name.removeprefix(CHAIN))) for name in chains]
        rows.append([tool, *(f"{1000 * statistics.median(t) / n:.2f}" if t else "-" for t, n in sums)])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    head_line = "## Growth\n\nProcessor milliseconds for each convolution of the residual network; level means linear."
    return f"{head_line}\n\n{table}"


def totals(runs: list[dict[str, Any]], steps: tuple[str, ...]) -> list[float]:
    """The sum of the steps, of each run that has them all."""
    return [sum(run[step] for step in steps) for run in runs if all(step in run for step in steps)]


def _median(runs: list[dict[str, Any]], step: str) -> str:
    values = [run[step] for run in runs if step in run]
    return f"{statistics.median(values):.2f}" if values else "-"


def _spread(values: list[float]) -> str:
    return f"**{statistics.median(values):.2f}** ({min(values):.2f} to {max(values):.2f})" if values else "-"


def _failure(runs: list[dict[str, Any]]) -> str:
    return next((f"{run['status']}, {run.get('message', '')}" for run in runs if "status" in run), "")


def detectors() -> list[str]:
    """The detectors of the zoo, frozen batch norm left out: Torch-Pruning cannot take it."""
    return [m.spec for m in zoo() if m.group in ("torchvision detectors", "Ultralytics")]


def main() -> None:
    """Measure and write the page, or one run of one tool for the process that asked for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="convolutions of the residual networks")
    parser.add_argument("--specs", nargs="*", help="model specs; without it the detectors of the zoo")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=600.0, metavar="SECONDS", help="time for one run")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "MODEL"), help="measure once, in this process")
    parser.add_argument("--json", type=Path, help="with --one: write the seconds there")
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        time.perf_counter = time.process_time  # what both tools' steps are timed with, in this process only
        text = json.dumps(seconds_of(*options.one))
        if options.json:
            options.json.write_text(text, encoding="utf-8")
        else:
            print(text)
        return
    specs = detectors() if options.specs is None else options.specs
    names = [*(f"{CHAIN}{size}" for size in options.sizes), *specs]
    answers = measure(names, repeats=options.repeats, limit_s=options.limit)
    facts, results = machine.describe(), options.docs / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "compile_time.json").write_text(json.dumps({"machine": facts, "runs": answers}, indent=1) + "\n")
    (results / "compile_time.md").write_text(page(facts, answers, options.repeats), encoding="utf-8")


if __name__ == "__main__":
    main()
