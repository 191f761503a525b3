"""What importance is divided by: memory and measured latency in place of the target's own cost."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import effp_fx
from effp_fx import cost as costs
from effp_fx.budget import search
from effp_fx.cost import COSTS, activation_bytes, flops, latency, register_cost
from effp_fx.errors import NameNotFoundError
from effp_fx.evaluate.layer_times import layer_seconds
from effp_fx.inputs import Example
from tests.hand_made import chain

IMAGES = torch.rand(1, 3, 32, 32)


def network() -> nn.Module:
    """A stem at full size and a deep layer at an eighth of it, with as many FLOPs."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(8)),
        *(nn.Conv2d(16, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 4)),
    )


def kept(small: nn.Module) -> list[int]:
    return [value.shape[0] for value in small.parameters() if value.ndim == 4]


def test_memory_as_the_cost_takes_channels_where_maps_are_large() -> None:
    model = network()
    plain, thrifty = (effp_fx.prune(model, IMAGES, target_flops=0.5, cost=name) for name in (None, "memory"))
    found = [effp_fx.trace(small, IMAGES) for small in (plain, thrifty)]
    written = [activation_bytes(one.analysis).dense for one in found]
    dense = effp_fx.trace(model, IMAGES).flops
    assert written[1] < 0.95 * written[0] and all(0.4 * dense < one.flops <= 0.5 * dense for one in found)
    shallow, deep = (sum(kept(thrifty)[part]) - sum(kept(plain)[part]) for part in (slice(2), slice(2, 4)))
    assert shallow < 0 < deep


def test_latency_takes_channels_from_layers_that_a_table_says_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effp_fx.cost.COSTS", dict(COSTS))
    model, counts = network(), []
    for slow in ("0", "7"):
        costs.COSTS.pop("latency", None)
        register_cost("latency", latency({name: 1.0 if name == slow else 1e-3 for name in ("0", "2", "5", "7")}))
        counts.append(kept(effp_fx.prune(model, IMAGES, target_flops=0.5, cost="latency")))
    assert counts[0][0] < counts[1][0] and counts[0][3] > counts[1][3]


def test_a_latency_is_the_sum_of_the_table_and_falls_with_flops() -> None:
    analysis = effp_fx.trace(network(), IMAGES).analysis
    table = {"0": 2.0, "2": 3.0, "3": 0.5, "absent": 7.0}
    found = latency(table)(analysis)
    assert found.dense == pytest.approx(5.5) and found.per_layer(analysis.keep_all())["3"] == pytest.approx(0.5)
    keep = analysis.keep_all()
    keep[analysis.group("0").start : analysis.group("0").start + 8] = False  # half of what layer 0 makes and 2 reads
    share = flops(analysis).per_layer(keep)["0"] / flops(analysis).per_layer(analysis.keep_all())["0"]
    assert found.per_layer(keep)["0"] == pytest.approx(2.0 * share) and share == pytest.approx(0.5, abs=0.01)


def test_layers_are_timed_and_the_model_is_left_as_it_was() -> None:
    model = network().train()
    found = layer_seconds(model, Example((IMAGES,)), rounds=2)
    assert set(found) == {str(index) for index in range(12)} and all(seconds > 0 for seconds in found.values())
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_a_ranking_cost_keeps_targets_and_the_targets_own_cost_changes_nothing() -> None:
    analysis = chain([32, 64, 48], positions=[64, 16, 4]).analysis()
    own, scores = flops(analysis), np.random.default_rng(0).uniform(0.5, 1.5, 144)
    asked: dict[str, Any] = {"costs": {"flops": own}, "targets": {"flops": 0.4 * own.dense}}
    assert (search(analysis, scores, **asked) == search(analysis, scores, **asked, rank_by=own)).all()
    other = search(analysis, scores, **asked, rank_by=costs.params(analysis))
    assert own(other) <= 0.4 * own.dense < own(other) + own.marginal(other).max()


def test_an_unknown_cost_is_refused_with_and_without_training() -> None:
    with pytest.raises(NameNotFoundError, match="no cost is named 'watts'"):
        effp_fx.prune(network(), IMAGES, cost="watts")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(NameNotFoundError, match="no cost is named 'watts'"):
        effp_fx.Session(model, optimizer, 100, cost="watts", example_inputs=IMAGES)
    effp_fx.Session(model, optimizer, 100, cost="memory", example_inputs=IMAGES)
