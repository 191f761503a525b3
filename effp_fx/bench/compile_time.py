"""From a model to a pruned one: seconds of each step, beside Torch-Pruning on the same model in the same process."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from effp_fx import api, models
from effp_fx.bench.residual_chain import residual_chain
from effp_fx.errors import EffpError
from effp_fx.inputs import Example
from effp_fx.methods.torch_pruning import make_pruner
from effp_fx.report.compile_report import CompileReport, CompileRow
from effp_fx.subject import examples_for, network_of

STEPS = ("capture", "analysis", "trial", "plan", "lowering")
THEIR_STEPS = ("graph", "prune")
RATIO = 0.3
"""Of the channels, for Torch-Pruning, which takes no target: about half the multiply-accumulates."""
Build = Callable[[], tuple[nn.Module, Example | None]]


def subjects(specs: list[str], sizes: list[int]) -> dict[str, Build]:
    """What is measured, by name: models by their spec, and residual networks by their number of convolutions.

    Raises EffpError for a size of which there is no such network.
    """

    def model(spec: str) -> Build:
        def build() -> tuple[nn.Module, Example | None]:
            built = models.build(spec)
            return built.model, built.given

        return build

    def chain(size: int) -> Build:
        def build() -> tuple[nn.Module, Example | None]:
            network, image = residual_chain(size)
            return network, Example((image,))

        return build

    wrong = [size for size in sizes if size < 12 or size % 2]
    if wrong:
        raise EffpError(
            "there is no residual network of this size", seen=str(wrong[0]), expected="even, 12 convolutions or more"
        )
    return {**{spec: model(spec) for spec in specs}, **{f"residual, {size}": chain(size) for size in sizes}}


def measure(
    subjects: Mapping[str, Build], *, repeats: int = 3, progress: Callable[[str], None] = lambda _: None
) -> CompileReport:
    """Prune each model to half its FLOPs, `repeats` times with both tools in turns, after one round to warm up.

    Seconds are of the clock; what the final verification takes is reported apart. Where Torch-Pruning fails on a model
    its error stands in place of its times.
    """
    rows = []
    for name, build in subjects.items():
        torch.manual_seed(0)
        model, example = build()
        row = CompileRow(name, sum(1 for value in model.parameters() if value.ndim > 2))
        stays = [frozen.tensor for frozen in api.trace(model, example).frozen]
        for repeat in range(repeats):
            progress(f"{name}, {repeat + 1} of {repeats}")
            row.ours.append(dict(api.prune_reported(model, example, target_flops=0.5).seconds))
            if row.failed is None:
                _their_turn(row, model, example, stays)
        rows.append(row)
    return CompileReport(tuple(rows), STEPS, THEIR_STEPS)


def _their_turn(row: CompileRow, model: nn.Module, example: Example | None, stays: list[str]) -> None:
    network = copy.deepcopy(network_of(model)[0])
    given, train_example = examples_for(network, example)
    begin = time.perf_counter()
    try:
        pruner = make_pruner(
            network, train_example or given, stays=stays, pruning_ratio=RATIO, iterative_steps=1, round_to=None
        )
        middle = time.perf_counter()
        pruner.step()
    except Exception as error:  # its own errors have no class
        row.failed = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return
    row.theirs.append({"graph": middle - begin, "prune": time.perf_counter() - middle})
