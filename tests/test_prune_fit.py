"""`prune(fit=...)`: the user's own loop, or a loader and ours, and what goes wrong with either."""

from typing import Any

import pytest
import torch
from torch import nn

import effp_fx
from effp_fx import models
from effp_fx.cost import flops
from effp_fx.errors import SessionError

EXAMPLE = torch.rand(2, 3, 8, 8)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 16, 4),
    )  # fmt: skip


def trained(model: nn.Module, session_factory: Any, steps: int = 60, taken: int = 60, **options: Any) -> Any:
    """The user's script: it knows nothing of pruning but one line."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    session = session_factory(optimizer, steps, **options)
    model.train()
    for _ in range(taken):
        optimizer.zero_grad()
        model(EXAMPLE).square().mean().backward()
        optimizer.step()
    return session


def share(model: nn.Module, small: nn.Module) -> float:
    costs = [flops(effp_fx.trace(one, EXAMPLE).analysis).dense for one in (model, small)]
    return costs[1] / costs[0]


def test_a_loop_of_ones_own_trains_a_copy_and_the_compact_copy_comes_back() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[Any] = []

    def fit(copy: nn.Module, session_factory: Any) -> None:
        seen.extend([copy, trained(copy, session_factory)])

    small = effp_fx.prune(model, EXAMPLE, target_flops=0.5, fit=fit)
    assert seen[0] is not model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert 0.4 < share(model, small) <= 0.5
    masked = seen[0].eval()(EXAMPLE)
    torch.testing.assert_close(small.eval()(EXAMPLE), masked)
    assert not torch.equal(masked, model.eval()(EXAMPLE))


def test_inplace_the_users_own_model_becomes_the_compact_one() -> None:
    model = network()
    dense = sum(value.numel() for value in model.parameters())
    assert effp_fx.prune(model, EXAMPLE, target_params=0.5, fit=trained, inplace=True) is model
    assert sum(value.numel() for value in model.parameters()) <= 0.5 * dense
    assert model.eval()(EXAMPLE).shape == (2, 4)


def test_a_moving_average_that_fit_returns_is_compacted_in_place_of_the_model() -> None:
    averages: list[nn.Module] = []

    def fit(copy: nn.Module, session_factory: Any) -> nn.Module:
        trained(copy, session_factory, updates=4)
        averages.append(torch.optim.swa_utils.AveragedModel(copy))
        with torch.no_grad():
            averages[0].module[7].bias.fill_(7.0)
        return averages[0]

    small = effp_fx.prune(network(), EXAMPLE, fit=fit)
    assert torch.equal(small[7].bias, torch.full((4,), 7.0))  # type: ignore[index,union-attr]


def test_a_loader_is_trained_on_by_the_loop_of_ours() -> None:
    model = models.build("effp:ssd_small?size=64&width=8&num_classes=3").model
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([label])} for label in (1, 2)]
    images = [torch.rand(3, 64, 64) for _ in targets]
    small = effp_fx.prune(model, target_flops=0.6, fit=[(images, targets)], epochs=60)
    assert type(small) is type(model)
    sizes = [sum(value.numel() for value in one.parameters()) for one in (model, small)]
    assert sizes[1] < sizes[0]
    before, after = (one.get_parameter("backbone.stages.3.1.second.0.weight").std() for one in (model, small))
    assert not torch.equal(before, after)  # it was trained, not cut only
    assert set(small.eval()(images)[0]) == {"boxes", "scores", "labels"}


def two_sessions(model: nn.Module, session_factory: Any) -> None:
    for _ in range(2):
        session_factory(torch.optim.SGD(model.parameters(), 0.1), 100)


@pytest.mark.parametrize(
    ("fit", "options", "message"),
    [
        (lambda *_: None, {}, "fit made no session"),
        (two_sessions, {}, "fit asked for a second session"),
        (lambda model, make: trained(model, make, taken=3), {}, "the mask is not fixed yet"),
        (7, {}, "fit is neither a function nor a loader"),
        ([], {}, "a loader needs the number of epochs"),
        (trained, {"epochs": 3}, "epochs are for a loader"),
        (None, {"epochs": 3}, "epochs are for a loader"),
    ],
)
def test_what_fit_cannot_be_is_said(fit: Any, options: dict[str, Any], message: str) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SessionError, match=message):
        effp_fx.prune(model, EXAMPLE, fit=fit, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_optimizer_of_the_original_is_refused() -> None:
    model = network()

    def fit(_: nn.Module, session_factory: Any) -> None:
        trained(model, session_factory)

    with pytest.raises(SessionError, match="the optimizer holds none of this model's parameters"):
        effp_fx.prune(model, EXAMPLE, fit=fit)
