"""One model of the zoo through effp_fx: what the trace found, what half the FLOPs gives, whether it is exact, trains.

python -m benchmarks.zoo_ours torchvision:ssd300_vgg16
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks import isolated
from benchmarks.torch_pruning_rival import first_line
from benchmarks.zoo_subject import subject
from effp_fx import api
from effp_fx.errors import UnreachableTargetError
from effp_fx.models.registry import Built

EXACT = 1e-9  # relative, float64
TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # the next is tried only where the one before cannot be reached


@dataclass
class Row:
    """What one model gave. Ratios are kept over dense, seconds as the process counts them, on one thread."""

    spec: str
    status: str = "crash"  # ok, wrong (does not verify), unreachable (0.5 cannot be met), crash, timeout
    message: str = ""
    nodes: int | None = None
    groups: int | None = None
    flops: float | None = None
    params: int | None = None
    prunable: float | None = None  # share of the FLOPs in layers that can lose channels
    frozen: int | None = None  # channels with a reason why not
    target: float | None = None
    flops_kept: float | None = None
    params_kept: float | None = None
    within_one_channel: bool | None = None
    error: float | None = None  # masked against compact, the largest over all outputs
    train_step: str | None = None  # "yes", or what failed
    seconds: dict[str, float] = field(default_factory=dict)  # capture, analysis, trial, plan, lowering, verify
    peak_mib: float | None = None


def row(spec: str) -> Row:
    """Everything about one model; an error ends the row, never the run."""
    done = Row(spec)
    try:
        model, example, built = subject(spec)
        try:
            _prune(done, model, example, built)
        except UnreachableTargetError:
            _only_traced(done, model, example)
    except Exception as error:
        done.message = first_line(error)
    done.peak_mib = round(isolated.peak_mebibytes(), 1)
    return done


def _prune(done: Row, model: nn.Module, example: Any, built: Built) -> None:
    result = _first_reachable(done, model, example)
    _note(done, result.trace)
    done.flops_kept = result.flops_after / result.flops_before
    done.params_kept = result.params_after / result.params_before
    room = (done.target or 0.0) * result.flops_before - result.flops_after
    done.within_one_channel = 0 <= room <= result.one_channel_flops
    error = float(result.verification.max_relative_error)
    done.error = error if math.isfinite(error) else None
    done.seconds.update(result.seconds)
    done.status = "wrong" if not error <= EXACT else "ok" if done.target == TARGETS[0] else "unreachable"
    done.train_step = train_step(result.model, built)


def _only_traced(done: Row, model: nn.Module, example: Any) -> None:
    """What there is to say of a model whose channels stay, all but all of them: none of the targets is met."""
    _note(done, api.trace(model, example))
    done.status, done.target = "unreachable", None


def _note(done: Row, trace: api.Trace) -> None:
    done.nodes, done.groups = len(trace.graph_module.graph.nodes), len(trace.groups)
    done.flops, done.params = float(trace.flops), int(trace.params)
    done.prunable = float(trace.prunable_flops_share)
    done.frozen = sum(frozen.channels for frozen in trace.frozen)


def _first_reachable(done: Row, model: nn.Module, example: Any) -> Any:
    for target in TARGETS:
        try:
            done.target = target
            return api.prune_reported(model, example, target_flops=target)
        except UnreachableTargetError as error:
            done.message = done.message or "; ".join([first_line(error), *_largest_reason(error)])
            if target == TARGETS[-1]:
                raise
    raise AssertionError("no target was tried")


def _largest_reason(error: UnreachableTargetError) -> list[str]:
    """The first line of what stands in the way, if anything does."""
    return [line.strip() for line in (error.seen or "").splitlines()[1:2]]


def train_step(model: nn.Module, built: Built) -> str:
    """One forward, loss, backward and step in train mode: "yes", or the first line of what failed."""
    try:
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        example = (built.adapter.train_example(model) if built.adapter else None) or built.example()
        outputs = model(*example.args, **example.kwargs)
        loss = built.adapter.loss(model, outputs) if built.adapter else _squares(outputs)
        loss.backward()
        if not any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()):
            return "no gradient"
        optimizer.step()
    except Exception as error:
        return first_line(error)
    return "yes"


def _squares(outputs: Any) -> Tensor:
    tensors = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
    return torch.stack([t.square().mean() for t in tensors]).sum()


def main() -> None:
    """Measure one model in this process and print its row, or write it to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec")
    parser.add_argument("--json", type=Path, help="write the row there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    text = json.dumps(asdict(row(options.spec)), indent=1)
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
