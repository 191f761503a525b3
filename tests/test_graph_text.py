"""Graphs as text, before and after: what lowering and masking change, and what they must not touch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from effp_fx import graph, tracing, trial
from effp_fx.capture import capture
from effp_fx.inputs import as_example
from effp_fx.passes.lower import Lower
from effp_fx.passes.mask import Mask
from tests.exactness import Net, prepared

c2, bn = nn.Conv2d, nn.BatchNorm2d


def shuffle(m: Net, x: Tensor) -> Tensor:
    n, c, h, w = (y := m.first(x)).shape
    result: Tensor = m.last(m.depth(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))
    return result


def halves(m: Net, x: Tensor) -> Tensor:
    one, two = m.first(x).chunk(2, 1)
    result: Tensor = m.last(torch.cat([torch.relu(two), one, m.side(x)], 1))
    return result


NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Net(
        lambda m, x: m.last((y := torch.relu(m.norm(m.first(x)))) + m.mid(y)),
        first=c2(3, 6, 1, bias=False),
        norm=bn(6),
        mid=c2(6, 6, 3, padding=1),
        last=c2(6, 2, 1),
    ),
    "halves": lambda: Net(halves, first=c2(3, 8, 1), side=c2(3, 4, 1), last=c2(12, 2, 1)),
    "shuffle": lambda: Net(shuffle, first=c2(3, 8, 1), depth=c2(8, 8, 3, padding=1, groups=8), last=c2(8, 2, 1)),
    "flatten": lambda: nn.Sequential(c2(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2)),
    "softmax": lambda: nn.Sequential(c2(3, 6, 1), nn.Softmax(1), c2(6, 2, 1)),
}


@pytest.mark.parametrize("name", NETS)
def test_before_and_after(name: str, golden: Callable[[str, str], None]) -> None:
    traced = tracing.trace(prepared(NETS[name]()), as_example(torch.randn(1, 3, 4, 4)))
    part, keep = traced.analysis.graphs[0], trial.trial_keep(traced.analysis, 3)
    dense = graph.to_text(part.capture.graph_module)
    compact = graph.to_text(Lower(keep)(traced.analysis, part).graph_module)
    kept = "\n".join(
        f"{group.name}: {[int(i) for i in keep[group.start : group.stop].nonzero()[0]]} of {group.channels}"
        for group in traced.analysis.groups
    )
    frozen = "\n".join(str(item).split(" (")[0] for item in traced.analysis.frozen)
    golden(f"graph_{name}", f"{dense}\n\nkeep\n{kept}\n{frozen}\n\n{compact}")
    if name == "softmax":
        assert compact == dense


@pytest.mark.parametrize("name", NETS)
def test_a_plan_that_keeps_all_changes_nothing(name: str) -> None:
    traced = tracing.trace(prepared(NETS[name]()), as_example(torch.randn(1, 3, 4, 4)))
    part = traced.analysis.graphs[0]
    for step in (Lower(traced.analysis.keep_all()), Mask(traced.analysis.keep_all())):
        result = step(traced.analysis, part)
        assert result.changed == 0
        assert graph.to_text(result.graph_module) == graph.to_text(part.capture.graph_module)


def test_a_mask_changes_weights_and_no_op() -> None:
    traced = tracing.trace(prepared(NETS["residual"]()), as_example(torch.randn(1, 3, 4, 4)))
    part = traced.analysis.graphs[0]
    result = Mask(trial.trial_keep(traced.analysis, 3))(traced.analysis, part)
    assert result.changed > 0
    assert graph.to_text(result.graph_module) == graph.to_text(part.capture.graph_module)


def test_text_does_not_depend_on_the_names_of_nodes() -> None:
    model = prepared(NETS["halves"]())
    one, two = (capture(model, as_example(torch.randn(1, 3, 4, 4))).graph_module for _ in range(2))
    for index, node in enumerate(two.graph.nodes):
        node.name = f"value_{index}"
    assert graph.to_text(one) == graph.to_text(two)
