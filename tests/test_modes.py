"""Two graphs of one model, of eval and of train mode: what the second shows is learnt, what it repeats is not."""

import pytest
import torch
from torch import Tensor, nn

from effp_fx import size_rules, tracing
from effp_fx.capture import capture
from effp_fx.graph import same_ops
from effp_fx.inputs import Example
from effp_fx.models.registry import build
from tests.exactness import Net, prepared

IMAGE = Example((torch.rand(2, 3, 8, 8),))


class Gated(nn.Module):
    """Reads a value of its own on the way: it refuses activations that are all zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(a, b, 3) for a, b in ((3, 16), (16, 16), (16, 4)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        if not bool(y.abs().sum() > 0):
            raise ValueError("nothing to see")
        return self.last(y)


def test_counters_and_flags_make_no_other_graph() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 3))
    evaluated, trained = capture(model, IMAGE), capture(model, IMAGE, train=True)
    assert len(trained.graph_module.graph.nodes) > len(evaluated.graph_module.graph.nodes)
    assert same_ops(evaluated.graph, trained.graph)


def test_a_count_that_is_read_makes_another_graph() -> None:
    def counted(m: Net, x: Tensor) -> Tensor:
        result: Tensor = m.last(m.first(x) * (m.steps.add_(1) if m.training else m.steps))
        return result

    model = Net(counted, first=nn.Conv2d(3, 4, 3), last=nn.Conv2d(4, 2, 3), steps=torch.tensor(1))
    evaluated, trained = capture(model, IMAGE), capture(model, IMAGE, train=True)
    assert not same_ops(evaluated.graph, trained.graph)


def test_a_head_that_only_training_runs_ties_its_channels_and_is_tried() -> None:
    built = build("effp:auxiliary")
    found = tracing.trace(built.model, built.example())
    assert [(part.capture.train, part.novel) for part in found.analysis.graphs] == [(False, True), (True, True)]
    assert {"first", "second"} <= {name.split(".")[0] for group in found.analysis.groups for name in group.layers}
    assert found.trials >= 2


def test_what_training_repeats_is_not_tried_again() -> None:
    def scored(m: Net, x: Tensor) -> Tensor:
        y: Tensor = m.last(torch.relu(m.first(x)))
        return y if m.training else y.sigmoid()

    model = prepared(Net(scored, first=nn.Conv2d(3, 8, 3), last=nn.Conv2d(8, 2, 3)))
    found = tracing.trace(model, IMAGE)
    assert [(part.capture.train, part.novel) for part in found.analysis.graphs] == [(False, True), (True, False)]
    assert found.trials == 1


def test_training_is_captured_on_as_many_samples_as_eval_mode() -> None:
    """What both modes do alike has other shapes on another batch, and would be looked at and tried out again."""

    def scored(m: Net, x: Tensor) -> Tensor:
        y: Tensor = m.last(torch.relu(m.first(x)))
        return y if m.training else y.sigmoid()

    model = prepared(Net(scored, first=nn.Conv2d(3, 8, 3), last=nn.Conv2d(8, 2, 3)))
    found = tracing.trace(model, IMAGE, train_example=Example((torch.rand(6, 3, 8, 8),)))
    trained = found.analysis.graphs[1]
    assert trained.capture.example.args[0].shape[0] == 2
    assert not trained.novel


def test_a_line_that_no_attribute_explains_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.layer(x).split((3, 5), 1)
            return torch.cat([two, one], 1)

    asked = []
    explain = size_rules.explain
    monkeypatch.setattr(size_rules, "explain", lambda *given: asked.append(given) or explain(*given))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *(Block() for _ in range(3)), nn.Conv2d(8, 2, 1))
    found = tracing.trace(prepared(model), IMAGE)
    frozen = [item.tensor for item in found.analysis.frozen if "size is written in Python" in item.reason]
    assert frozen == ["1.layer.weight", "2.layer.weight", "3.layer.weight"]
    assert len(asked) == 1


@pytest.mark.parametrize("side", [8, 64])
def test_a_trial_without_values_is_not_the_last_word(side: int) -> None:
    found = tracing.trace(prepared(Gated()), Example((torch.rand(2, 3, side, side),)))
    assert {group.name for group in found.analysis.groups} == {"first", "second"}
