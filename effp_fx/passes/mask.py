"""The masked graph: the dense one with the channels that go switched off at the weights that hand them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effp_fx import graph
from effp_fx.groups import Analysis, Graph, Keep
from effp_fx.masking import masked_tensors
from effp_fx.passes.base import Pass, PassResult, copied, rebuilt


@dataclass(frozen=True, eq=False)
class Mask(Pass):
    """Zero the filters, biases, gammas, betas and tables of the channels that `keep` drops."""

    name: ClassVar[str] = "mask"
    keep: Keep

    def __call__(self, analysis: Analysis, part: Graph) -> PassResult:
        source = part.capture.graph_module
        tensors = {name: graph.tensor_of(source, name) for _, name in graph.weights(source)}
        known = {name: dims for name, dims in analysis.tensors.items() if name in tensors}
        zeroed = masked_tensors(known, tensors, self.keep)
        new_graph, _ = copied(part)
        return PassResult(rebuilt(part, new_graph, zeroed, "Masked"), len(zeroed))
