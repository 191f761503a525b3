"""Torch-Pruning on one model: what it says, how far it gets, how long it takes, and whether what it leaves is right.

    python -m benchmarks.torch_pruning_rival torchvision:ssd300_vgg16 --told recipe

Only its public interface is used. "nothing" tells it the model and the inputs; "recipe" what its own examples tell it
(torch_pruning_recipes.py). Half the multiply-accumulates are reached as its own reproduction script reaches a
speed-up: one pruner steps on until the count is there. Its steps are of 2 % of all channels; far from the target
several are taken as one, because each costs it seconds on a detector.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import isolated, masked_twin, position_macs
from benchmarks.torch_pruning_recipes import Recipe, family_of, prepare, recipe
from effp_fx.inputs import Example, to_dtype

STEPS = 50  # of 2 % of all channels each: two neighbouring steps are about 3 % of the MACs apart
TOLD = ("nothing", "recipe")


@dataclass(frozen=True)
class Result:
    """How Torch-Pruning fared on one model. Ratios: kept over dense. Errors: relative, float64. None: not reached."""

    told: str
    status: str = (
        "crash"  # ok, wrong, crash (graph or prune), no-forward (the cut model does not run), nothing-pruned, timeout
    )
    message: str = ""
    flops_kept: float | None = None  # by torch.utils.flop_counter
    params_kept: float | None = None
    channel_ratio: float | None = None  # the pruning_ratio at which the steps stopped
    error: float | None = None  # against the dense network with what makes the cut channels zeroed
    error_both: float | None = None  # the same with the columns that read them zeroed as well
    mask_shows: bool | None = (
        None  # whether the mask changed the output by more than 1e-6; if not, the error proves little
    )
    graph_s: float | None = None  # building the pruner, its dependency graph with it
    prune_s: float | None = None  # one step of a fresh pruner at channel_ratio
    search_s: float | None = None  # all the steps that led to it, without counting


def rival(model: nn.Module, example: Example, *, told: str, target: float = 0.5, steps: int = STEPS) -> Result:
    """Prune a copy of the model (float32, eval) to `target` of its multiply-accumulates; errors end in the result."""
    family = family_of(model)
    dense = copy.deepcopy(model).eval()
    if told == "recipe":
        prepare(dense, family)
    result = Result(told)
    try:
        cut, result = _search(dense, example, family, result, target, steps)
        result = _time_once(dense, example, family, result)
    except Exception as error:
        return replace(result, message=with_place(error))
    kept = masked_twin.kept_positions(cut, dense)
    if not kept:
        return replace(result, status="nothing-pruned", message="no parameter lost an element")
    return _judge(cut, dense, example, kept, result)


def first_line(error: BaseException) -> str:
    """The type and the first line of an error, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def with_place(error: BaseException) -> str:
    """first_line(), and the line that raised it, so that it can be seen whose error it is."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return first_line(error)
    path = "/".join(Path(frames[-1].filename).parts[-3:])
    return f"{first_line(error)} ({path}:{frames[-1].lineno})"


@dataclass
class _Descent:
    """One pruner on its way down: the model it cuts, and (step, multiply-accumulates) after each leap."""

    model: nn.Module
    pruner: Any
    how: Recipe
    applied: dict[str, int]
    spent_s: float = 0.0
    seen: list[tuple[int, int]] = field(default_factory=list)

    def leap(self, to: int) -> None:
        """Go on to a step, as one."""
        self.pruner.current_step = to - 1  # step() adds the last one
        start = time.perf_counter()
        self.pruner.step()
        self.spent_s += time.perf_counter() - start
        self.seen.append((to, position_macs.macs(self.model, self.applied)))


def _search(
    dense: nn.Module, example: Example, family: str, result: Result, target: float, steps: int
) -> tuple[nn.Module, Result]:
    """Step on to the first step that is at or under the target; a leap over it is taken back and divided."""
    applied = position_macs.positions(dense, caller(example))
    whole = position_macs.macs(dense, applied)
    path: list[int] = []
    longest = max(1, steps // 5)
    while True:
        cut = copy.deepcopy(dense)
        masked_twin.tag(cut)
        way = _Descent(cut, *_pruner(cut, example, family, result.told, ratio=1.0, steps=steps), applied)
        way.seen.append((0, whole))
        for step in path:
            way.leap(step)
        while way.seen[-1][1] > target * whole and way.pruner.current_step < steps:
            way.leap(way.seen[-1][0] + min(longest, _leap(way.seen, target * whole, steps)))
        stopped = way.seen[-1][0]
        taken = stopped - way.seen[-2][0]
        if way.seen[-1][1] > target * whole or taken == 1:
            break
        path, longest = [step for step, _ in way.seen[1:-1]], max(1, taken // 2)
    way.how.mend(way.pruner)
    left = sum(p.numel() for p in cut.parameters()) / sum(p.numel() for p in dense.parameters())
    reached = "" if way.seen[-1][1] <= target * whole else "the target is not reached with every step taken"
    return cut, replace(result, search_s=way.spent_s, channel_ratio=stopped / steps, params_kept=left, message=reached)


def _leap(seen: list[tuple[int, int]], budget: float, steps: int) -> int:
    """How many steps to take as one: seven tenths of what the last leap lets expect, not to leap over the target."""
    last, macs = seen[-1]
    few = max(1, steps // 10)
    if len(seen) == 1:
        return few
    before, more = seen[-2]
    if macs >= more:
        return min(few, steps - last)
    expected = math.log(macs / budget) / math.log(more / macs) * (last - before)
    return min(max(1, int(0.7 * expected)), steps - last)


def _time_once(dense: nn.Module, example: Example, family: str, result: Result) -> Result:
    """The time that a user needs who knows the ratio: graph, then one step, on a copy that carries no positions."""
    seconds = prune_once(copy.deepcopy(dense), example, family, result.told, result.channel_ratio or 0.5)
    return replace(result, graph_s=seconds[0], prune_s=seconds[1])


def prune_once(model: nn.Module, example: Example, family: str, told: str, ratio: float) -> tuple[float, float]:
    """Build the pruner on the model and prune it, in place, in one step; return the seconds of both."""
    start = time.perf_counter()
    pruner, _ = _pruner(model, example, family, told, ratio=ratio, steps=1)
    middle = time.perf_counter()
    pruner.step()
    return middle - start, time.perf_counter() - middle


def _pruner(
    model: nn.Module, example: Example, family: str, told: str, *, ratio: float, steps: int
) -> tuple[Any, Recipe]:
    import torch_pruning

    how = recipe(model, family) if told == "recipe" else Recipe()
    # Its defaults for these are dictionaries that all pruners of a process share: give each its own.
    own: dict[str, Any] = {"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}, **how.options}
    if example.kwargs and example.args:
        own["forward_fn"] = lambda network, _: network(*example.args, **example.kwargs)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example.kwargs or example.args,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        iterative_steps=steps,
        **own,
    )
    return pruner, how


def _judge(cut: nn.Module, dense: nn.Module, example: Example, kept: dict[str, Any], result: Result) -> Result:
    """Run the cut network against both of its twins in float64."""
    double = predictions(to_dtype(example, torch.float64), family_of(dense))
    norms = sorted(
        {type(cut.get_submodule(name.rpartition(".")[0])).__name__ for name in kept} & {"LayerNorm", "GroupNorm"}
    )
    for parameter in cut.parameters():
        parameter.grad = None
    cut = cut.double().eval()
    try:
        found = masked_twin.observe(cut, double)
    except Exception as raised:
        return replace(result, status="no-forward", message=with_place(raised))
    whole, twin, both = (
        masked_twin.observe(copy.deepcopy(network).double(), double) for network in _twins(dense, kept)
    )
    error, where = masked_twin.relative_error(found, twin)
    error_both, _ = masked_twin.relative_error(found, both)
    shows = masked_twin.output_difference(twin, whole) > 1e-6
    result = replace(
        result,
        flops_kept=found.flops / whole.flops,
        error=finite(error),
        error_both=finite(error_both),
        mask_shows=shows,
    )
    if error <= masked_twin.EXACT:
        chosen = "every layer agrees; other boxes of equal score were chosen" if where == "choice" else result.message
        return replace(result, status="ok", message=chosen)
    return replace(result, status="wrong", message=_why(error, error_both, where, norms))


def finite(value: float) -> float | None:
    """The value, or None where it is infinite or NaN, for which JSON has no number."""
    return value if math.isfinite(value) else None


def _why(error: float, error_both: float, where: str, norms: list[str]) -> str:
    if math.isinf(error):
        return where
    if error_both <= masked_twin.EXACT:
        return f"a channel that was cut is not zero where {where} reads it"
    if norms:
        return f"{where} differs; {' and '.join(norms)} was cut, whose statistics change with it"
    return f"{where} differs"


def _twins(dense: nn.Module, kept: dict[str, Any]) -> Iterator[nn.Module]:
    """The dense network, then both masked twins, one at a time: three large networks at once need not fit."""
    yield dense
    yield masked_twin.masked(copy.deepcopy(dense), kept, consumers=False)
    yield masked_twin.masked(copy.deepcopy(dense), kept, consumers=True)


def caller(example: Example) -> Callable[[nn.Module], Any]:
    """A function that calls a model on the example."""
    return lambda model: model(*example.args, **example.kwargs)


def predictions(example: Example, family: str) -> Callable[[nn.Module], Any]:
    """The same, without the features that Ultralytics returns beside its predictions for the loss."""
    call = caller(example)
    if family != "ultralytics":
        return call

    def first(model: nn.Module) -> Any:
        output = call(model)
        return output[0] if isinstance(output, (tuple, list)) else output

    return first


def measure(spec: str, told: str, *, limit_s: float, threads: int = 1) -> dict[str, Any]:
    """rival() on a model spec in a process of its own: Result's fields, wall_s and peak_mib."""
    answer = isolated.run("benchmarks.torch_pruning_rival", [spec, "--told", told], limit_s=limit_s, threads=threads)
    return {**asdict(Result(told)), **answer}


def main() -> None:
    """Measure one model in this process and print the result, or write it to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="what to prune, such as torchvision:ssd300_vgg16")
    parser.add_argument("--told", choices=TOLD, default="nothing")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    from benchmarks.zoo_subject import subject

    model, example, _ = subject(options.spec)
    result = asdict(rival(model, example, told=options.told, steps=options.steps))
    result["peak_mib"] = round(isolated.peak_mebibytes(), 1)
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
