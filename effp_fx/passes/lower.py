"""The compact graph: every weight sliced, every size that is written into a call replaced by what is left of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx

from effp_fx import graph, ops
from effp_fx.graph import TensorInfo
from effp_fx.groups import Analysis, Graph, Keep, kept_flags
from effp_fx.ops.context import Call
from effp_fx.ops.shadow import Shadow
from effp_fx.ops.sizes import spelled_out
from effp_fx.passes.base import Pass, PassResult, copied, rebuilt


@dataclass(frozen=True, eq=False)
class Lower(Pass):
    """Cut the channels that `keep` drops out of the graph."""

    name: ClassVar[str] = "lower"
    keep: Keep

    def __call__(self, analysis: Analysis, part: Graph) -> PassResult:
        new_graph, table = copied(part)
        changed = 0
        for node in part.capture.graph.nodes:
            if node.op == "call_function":
                changed += self._resize(part, node, table)
            if node in part.dims:
                table[node].meta["val"] = self._values(part, node)
        weights = self._weights(analysis, part)
        return PassResult(rebuilt(part, new_graph, weights, "Compact"), changed + len(weights))

    def _resize(self, part: Graph, node: fx.Node, table: dict[fx.Node, fx.Node]) -> int:
        row = ops.find(node)
        touched = any(
            self._shape(part, item, 0) != _dense(item, 0) for item in (node, *node.all_input_nodes) if item in part.dims
        )
        if row is None or row.sizes is None or not (touched or self._parts_change(part, node)):
            return 0
        shadows = {
            item: [Shadow(value.shape if value else ()) for value in graph.infos(item)]
            for item in (node, *node.all_input_nodes)
        }
        kept = ops.Kept(
            Call(node, shadows),
            lambda item, output: self._shape(part, item, output),
            lambda item, output, dim: self._flags(part, item, output, dim),
        )
        args, kwargs = row.sizes(kept)
        new = table[node]
        new.target = spelled_out(node)
        new.args = fx.map_arg(args, lambda item: table[item])
        new.kwargs = fx.map_arg(kwargs, lambda item: table[item])
        return 1

    def _parts_change(self, part: Graph, node: fx.Node) -> bool:
        return any(self._shape(part, node, output) != _dense(node, output) for output in range(len(graph.infos(node))))

    def _shape(self, part: Graph, node: fx.Node, output: int) -> tuple[int, ...]:
        shape = list(_dense(node, output))
        for dim, channels in part.dims[node][output].items():
            shape[dim] = int(kept_flags(channels, self.keep).sum())
        return tuple(shape)

    def _flags(self, part: Graph, node: fx.Node, output: int, dim: int) -> list[bool]:
        channels = part.dims[node][output].get(dim)
        if channels is None:
            return [True] * _dense(node, output)[dim]
        return [bool(flag) for flag in kept_flags(channels, self.keep)]

    def _values(self, part: Graph, node: fx.Node) -> Any:
        values = [
            TensorInfo(self._shape(part, node, output), value.dtype) if value else None
            for output, value in enumerate(graph.infos(node))
        ]
        return values if isinstance(node.meta.get("val"), list) else values[0]

    def _weights(self, analysis: Analysis, part: Graph) -> dict[str, Tensor]:
        source = part.capture.graph_module
        result = {}
        for _, name in graph.weights(source):
            dims = analysis.tensors[name].dims if name in analysis.tensors else {}
            tensor = graph.tensor_of(source, name).detach()
            for dim, channels in dims.items():
                flags = kept_flags(channels, self.keep)
                if not flags.all():
                    tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(flags)).to(tensor.device))
                    result[name] = tensor
        return result


def _dense(node: fx.Node, output: int) -> tuple[int, ...]:
    value = graph.infos(node)[output]
    return value.shape if value else ()
