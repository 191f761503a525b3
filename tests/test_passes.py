"""The mask and lower passes: both graphs run, masked equals compact, compact equals what the compact module does."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from effp_fx import binding, graph, models, trial
from effp_fx.capture import capture
from effp_fx.groups import Analysis, Graph, Keep
from effp_fx.inputs import Example
from effp_fx.models.randomise import randomise
from effp_fx.passes import base
from effp_fx.passes.lower import Lower
from effp_fx.passes.mask import Mask
from effp_fx.plan import from_keep
from effp_fx.tracing import Tracing, trace
from tests.exactness import EXACT, distance
from tests.untouched import untouched

NETS = [
    "effp:chain",
    "effp:residual",
    "effp:c2f",
    "effp:shuffle",
    "effp:dense",
    "effp:flatten_linear",
    "effp:pixel_shuffle",
    "effp:shared_head",
    "torchvision:resnet18",
    "torchvision:shufflenet_v2_x0_5",
]
CHANGED = 1e-6


def traced(spec: str) -> Tracing:
    model = models.build(spec).model
    randomise(model)
    example = models.example_for(model) if spec.startswith("effp") else Example((torch.rand(1, 3, 64, 64),))
    return trace(model.double(), Example(tuple(value.double() for value in example.args)))


def evaluation(analysis: Analysis) -> Graph:
    return next(part for part in analysis.graphs if not part.capture.train)


def run(module: fx.GraphModule, example: Example) -> list[Tensor]:
    with torch.no_grad():
        return list(module(*example.tensors()))


def plain_splits(text: str) -> str:
    """Splits and chunks spelt alike: how many parts, or of which sizes, is the same once the parts are."""
    return re.sub(r"aten\.(split|chunk|split_with_sizes|tensor_split)\((%\d+), [^)]*\)", r"split(\2)", text)


@pytest.mark.parametrize("spec", NETS)
def test_masked_is_compact_is_the_module(spec: str) -> None:
    found = traced(spec)
    part, keep = evaluation(found.analysis), trial.trial_keep(found.analysis, 3)
    dense = run(part.capture.graph_module, found.example)
    seen: list[str] = []
    with untouched(found.model, part.capture.graph_module):
        masked, compact = base.run(
            [Mask(keep), Lower(keep)], found.analysis, part, lambda step, result, seconds: seen.append(step.name)
        )
        outputs = [run(result.graph_module, found.example) for result in (masked, compact)]
    assert seen == ["mask", "lower"]
    assert min(masked.changed, compact.changed) > 0
    assert distance(*outputs) < EXACT
    assert distance(outputs[0], dense) > CHANGED, "the mask changed nothing, which proves nothing"
    module = compacted(found, keep)
    assert distance(outputs[1], run(capture(module, found.example).graph_module, found.example)) < EXACT


@pytest.mark.parametrize("spec", NETS)
def test_the_compact_graph_is_the_graph_of_the_compact_module(spec: str) -> None:
    found = traced(spec)
    keep = trial.trial_keep(found.analysis, 5)
    lowered = Lower(keep)(found.analysis, evaluation(found.analysis)).graph_module
    again = capture(compacted(found, keep), found.example).graph_module
    assert plain_splits(graph.to_text(lowered)).splitlines() == plain_splits(graph.to_text(again)).splitlines()


def compacted(found: Tracing, keep: Keep) -> nn.Module:
    return binding.apply(found.model, from_keep(found.analysis, keep, found.attributes(keep), summary={}))


def test_keeping_all_changes_nothing() -> None:
    found = traced("effp:residual")
    part = evaluation(found.analysis)
    for step in (Mask(found.analysis.keep_all()), Lower(found.analysis.keep_all())):
        result = step(found.analysis, part)
        assert result.changed == 0
        assert graph.to_text(result.graph_module) == graph.to_text(part.capture.graph_module)


def test_a_train_graph_goes_through_the_same_passes() -> None:
    found = traced("effp:auxiliary")
    part, keep = found.analysis.graphs[-1], trial.trial_keep(found.analysis)
    assert part.capture.train
    masked, compact = (result.graph_module for result in base.run([Mask(keep), Lower(keep)], found.analysis, part))
    assert distance(run(masked, found.example), run(compact, found.example)) < EXACT


def test_before_and_after_as_text(golden: Callable[[str, str], None]) -> None:
    found = traced("effp:c2f")
    part, keep = evaluation(found.analysis), np.zeros(found.analysis.channels, dtype=np.bool_)
    for number, group in enumerate(found.analysis.groups):
        keep[group.start : group.start + min(3 + number, group.channels)] = True
    lowered = Lower(keep)(found.analysis, part).graph_module
    texts = (graph.to_text(part.capture.graph_module), graph.to_text(lowered))
    golden("passes_c2f", "\n\n".join(("dense", texts[0], "compact", texts[1])))
