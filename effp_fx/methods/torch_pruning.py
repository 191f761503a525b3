"""Torch-Pruning (Fang et al. 2023) as a library: its own graph, its own pruner, its own cut, through its own API."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from effp_fx.errors import MethodError
from effp_fx.inputs import Example
from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.problem import Problem, pose


@dataclass(frozen=True)
class TorchPruning:
    """Half of the epochs dense, one of Torch-Pruning's pruners down to the targets, fine-tuning in the other half.

    Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning" (CVPR 2023), torch-pruning 1.6. It is told what
    its own examples tell it: a function that runs the model to its losses, and the layers that must stay, which are
    those that our analysis freezes. It has no targets: its pruner takes steps of 1 / `steps` of all channels until
    FLOPs (counted by torch) and parameters are under them, so it may end below by as much as a step takes.

    Raises MethodError for a model that it cannot trace, cut or run.
    """

    pruner: str = "MagnitudePruner"
    """Of `torch_pruning.pruner`."""
    importance: Callable[[], Any] | None = None
    """Makes one of its importances; None: `MagnitudeImportance(p=2)`."""
    steps: int = 50

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)
        first, second = budget.halves()
        trainer.fit(model, first)
        small, before, after = self.cut(problem)
        trainer.fit(small, second)
        return Outcome(small, (before[0], after[0]), (before[1], after[1]))

    def cut(self, problem: Problem) -> tuple[nn.Module, tuple[float, float], tuple[float, float]]:
        """A copy of the network that is under the targets, and FLOPs and parameters before and after."""
        small = copy.deepcopy(problem.network)
        example, train_example = problem.found.example, problem.found.train_example
        before = counted(small, example)
        wanted = problem.targets.absolute(problem.costs)
        limits = [wanted.get("flops", float("inf")), wanted.get("params", float("inf"))]
        after = before
        try:
            made = self.pruner_for(small, problem, train_example or example)
            for _ in range(self.steps):
                if all(is_ <= most for is_, most in zip(after, limits, strict=True)):
                    break
                made.step()
                after = counted(small, example)
        except Exception as error:  # its own errors have no class, and the cut model may fail in any way
            raise MethodError(
                "Torch-Pruning cannot prune this model",
                where=type(small).__name__,
                seen=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                mend="leave torch_pruning out of --methods",
            ) from error
        if any(is_ > most for is_, most in zip(after, limits, strict=True)):
            raise MethodError(
                "Torch-Pruning does not reach the targets",
                where=type(small).__name__,
                seen=f"{after[0] / before[0]:.3f} of the FLOPs, {after[1] / before[1]:.3f} of the parameters",
            )
        return small.train(), before, after

    def pruner_for(self, network: nn.Module, problem: Problem, example: Example) -> Any:
        """Its pruner on a network, the dependency graph made."""
        return make_pruner(
            network,
            example,
            stays=[frozen.tensor for frozen in problem.analysis.frozen],
            kind=self.pruner,
            importance=self.importance,
            pruning_ratio=1.0,
            iterative_steps=self.steps,
            round_to=problem.targets.round_to,
        )


def make_pruner(
    network: nn.Module,
    example: Example,
    *,
    stays: Sequence[str] = (),
    kind: str = "MagnitudePruner",
    importance: Callable[[], Any] | None = None,
    **options: Any,
) -> Any:
    """A pruner of Torch-Pruning, over all layers at once, on a model of any interface; making it makes its graph.

    Args:
        network: what it will cut; left as it is by this.
        example: inputs on which the model returns something that autograd can walk back from, losses for one.
        stays: weights whose layers it must not cut.
        kind: of `torch_pruning.pruner`.
        importance: makes one of its importances; None: `MagnitudeImportance(p=2)`.
        options: of the pruner.
    """
    import torch_pruning

    owners = sorted({name.rpartition(".")[0] for name in stays})
    made = importance or torch_pruning.importance.MagnitudeImportance
    with _buffers_kept(network):
        return getattr(torch_pruning.pruner, kind)(
            network,
            example.args,
            importance=made(),
            global_pruning=True,
            ignored_layers=[network.get_submodule(name) for name in owners],
            # Its defaults are dictionaries that all pruners of a process share: give each its own.
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            forward_fn=lambda running, _: _reachable(running.train(), example),
            **options,
        )


def counted(network: nn.Module, example: Example) -> tuple[float, float]:
    """FLOPs of one pass in eval mode, and parameters."""
    network.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(*example.args, **example.kwargs)
    return float(counter.get_total_flops()), float(sum(value.numel() for value in network.parameters()))


def _reachable(network: nn.Module, example: Example) -> list[torch.Tensor]:
    """The outputs from which a walk back through autograd's graph reaches the weights."""
    found = [leaf for leaf in tree_leaves(network(*example.args, **example.kwargs)) if isinstance(leaf, torch.Tensor)]
    return [value for value in found if value.grad_fn is not None]


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """Put statistics back that a pass in train mode changes."""
    before = {name: value.clone() for name, value in network.named_buffers()}
    yield
    for name, value in network.named_buffers():
        value.copy_(before[name])
