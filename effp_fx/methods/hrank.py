"""HRank (Lin et al. 2020): the filters whose feature maps have the lowest mean rank go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from effp_fx import importance
from effp_fx.capture import capture
from effp_fx.graph import TensorInfo
from effp_fx.groups import Analysis, Keep
from effp_fx.importance import Floats
from effp_fx.inputs import Example, map_tensors
from effp_fx.methods.base import Budget, Outcome, Trainer
from effp_fx.methods.problem import Problem, pose, two_sessions
from effp_fx.recalibrate import inputs_of


@dataclass(frozen=True)
class HRank:
    """Train dense, rank the feature maps of some batches, cut once, fine-tune.

    Lin, Ji, Wang, Zhang, Zhang, Tian, Shao, "HRank: Filter Pruning using High-Rank Feature Map" (CVPR 2020):

        s_j = mean over images of rank(O_j),    O_j (H x W) the feature map of filter j, after its activation

    Differences: the paper sets each layer's share by hand and prunes layer after layer with training in between, here
    the search of `prune` finds the shares for the targets and cuts once; a filter that several layers make together
    has the map of their sum; channels without a map of two dimensions are ranked by L1.
    """

    batches: int = 5

    def __call__(self, model: nn.Module, trainer: Trainer, budget: Budget) -> Outcome:
        problem = pose(model, trainer, budget)

        def choose(_: Any) -> Keep:
            return problem.choose(ranks(problem, trainer.batches(self.batches)))

        return two_sessions(problem, trainer, choose)


def ranks(problem: Problem, batches: Sequence[Any]) -> Floats:
    """The mean rank of each channel's feature map (K) over all images of the batches."""
    sums, counts = np.zeros(problem.analysis.channels), np.zeros(problem.analysis.channels)
    places = feature_maps(problem.analysis)
    device = next(problem.network.parameters()).device
    for batch in batches:
        example: Example = map_tensors(lambda value: value.to(device), inputs_of(batch, problem.found.example))
        recorded = capture(problem.network, example)
        _Reader(recorded.graph_module, _matched(problem.analysis, recorded.graph, places), sums, counts).run(
            *example.tensors()
        )
    found = sums / np.maximum(counts, 1)
    rest = importance.l1(problem.analysis, problem.tensors)
    return np.where(counts > 0, found, rest)


def feature_maps(analysis: Analysis) -> dict[fx.Node, np.ndarray]:
    """Node of the graph in eval mode -> its channels: of each group the last map that its filters alone lead to.

    From the first map with a group's channels on, as long as one op alone reads it and hands out a map with the same
    channels: through norms, sums and activations.
    """
    graph = analysis.graphs[0]
    found: dict[fx.Node, np.ndarray] = {}
    seen: set[str] = set()
    for node in graph.capture.graph.nodes:
        channels = _channels(graph.dims, node)
        owner = _owner(analysis, channels)
        if owner is None or owner in seen:
            continue
        seen.add(owner)
        while len(node.users) == 1 and np.array_equal(_channels(graph.dims, next(iter(node.users))), channels):
            node = next(iter(node.users))
        found[node] = channels
    return found


def _channels(dims: Any, node: fx.Node) -> Any:
    """The channels along dimension 1 of a map (N, C, H, W); None where the node's value is none."""
    outputs, seen = dims.get(node) or [{}], node.meta.get("val")
    is_map = node.op == "call_function" and isinstance(seen, TensorInfo) and len(seen.shape) == 4
    return outputs[0].get(1) if is_map else None


def _owner(analysis: Analysis, channels: Any) -> str | None:
    if channels is None or not (channels >= 0).any():
        return None
    first = int(channels[channels >= 0].min())
    return next(group.name for group in analysis.groups if group.start <= first < group.stop)


def _matched(analysis: Analysis, recorded: fx.Graph, places: dict[fx.Node, np.ndarray]) -> dict[fx.Node, np.ndarray]:
    """The same ops in another recording of the network: of other inputs, so that what follows the data may differ."""
    known = [n for n in analysis.graphs[0].capture.graph.nodes if n.op == "call_function"]
    now = [n for n in recorded.nodes if n.op == "call_function"]
    found = {}
    for one, two in zip(known, now, strict=False):
        if one.target != two.target:
            break
        if one in places:
            found[two] = places[one]
    return found


class _Reader(fx.Interpreter):
    """Runs a graph, and adds up the ranks of some of its maps."""

    def __init__(self, module: fx.GraphModule, places: dict[fx.Node, np.ndarray], sums: Floats, counts: Floats) -> None:
        super().__init__(module)
        self.places, self.sums, self.counts = places, sums, counts

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        """As ever."""
        value = super().run_node(n)
        if n in self.places:
            found, channels = map_ranks(value), self.places[n]
            known = channels >= 0
            np.add.at(self.sums, channels[known], found.sum(axis=0)[known])
            np.add.at(self.counts, channels[known], float(len(found)))
        return value


def map_ranks(maps: Tensor) -> Floats:
    """The rank of each map: (N, C, H, W) -> (N, C)."""
    found: Floats = torch.linalg.matrix_rank(maps.detach().float()).double().cpu().numpy()
    return found
