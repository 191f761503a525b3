"""What a session refuses: the message says what was seen and what mends it, model and optimizer are as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import effp_fx
from effp_fx.errors import DivergenceError, EffpError, NameNotFoundError, SessionError, TargetError
from tests.session_run import STEPS, attached, batch, held, net, sgd, train
from tests.untouched import untouched


def without_gammas(model: nn.Module) -> Any:
    return torch.optim.SGD([value for value in model.parameters() if value.dim() > 1], lr=0.1)


def of_a_copy(model: nn.Module) -> Any:
    return sgd(net())


class Wrapper:
    """As Accelerate wraps an optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


REFUSED: dict[str, tuple[Any, dict[str, Any], type[EffpError], tuple[str, ...]]] = {
    "no optimizer": (
        lambda model: list(model.parameters()),
        {},
        SessionError,
        ("a session attaches to an optimizer", "seen: list", "expected: a torch.optim.Optimizer"),
    ),
    "no gammas": (
        without_gammas,
        {},
        SessionError,
        ("does not move all that the session prunes", "not in its param_groups: body.0.1.weight", "requires_grad_"),
    ),
    "a copy's": (
        of_a_copy,
        {},
        SessionError,
        ("holds none of this model's parameters", "parameters of other objects", "from the very model"),
    ),
    "too few steps": (sgd, {"total_steps": 3}, SessionError, ("total_steps is too small for 4 updates", "at least 6")),
    "alpha": (sgd, {"alpha": -1}, SessionError, ("alpha must be a finite number, 0 or more", "seen: -1")),
    "drift": (sgd, {"drift": "high"}, SessionError, ("drift must be a finite number", "seen: 'high'")),
    "a name": (sgd, {"treshold": 0.1}, SessionError, ("Session does not take treshold", "did you mean threshold?")),
    "threshold": (sgd, {"threshold": 0}, SessionError, ("threshold must be above 0",)),
    "nan": (sgd, {"threshold": float("nan")}, SessionError, ("threshold must be a finite number", "seen: nan")),
    "regrow_by": (sgd, {"regrow_by": "magic"}, SessionError, ("regrow_by is not known", "importance or random")),
    "seed": (sgd, {"seed": -3}, SessionError, ("seed must be a whole number", "seen: -3")),
    "regrow": (sgd, {"regrow": 2.0}, SessionError, ("regrow must be a part between 0 and 1",)),
    "importance": (sgd, {"importance": "gama"}, NameNotFoundError, ("no importance is named 'gama'", "gamma")),
    "target": (sgd, {"target_flops": -0.5}, TargetError, ("a target must be a finite number above 0",)),
    "ignore": (sgd, {"ignore": ["bodi"]}, NameNotFoundError, ("ignore names 'bodi'",)),
}


@pytest.mark.parametrize(("make", "options", "kind", "parts"), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_is_touched(
    make: Any, options: dict[str, Any], kind: type[EffpError], parts: tuple[str, ...]
) -> None:
    model = net()
    optimizer = make(model)
    with untouched(model), pytest.raises(kind) as caught:
        attached(model, optimizer, **options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    if isinstance(optimizer, torch.optim.Optimizer):
        assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
        assert not optimizer.state


def test_a_model_of_which_nothing_can_go() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1))
    with untouched(model), pytest.raises(SessionError) as caught:
        attached(model, sgd(model), target_flops=1.0, target_params=None)
    assert "nothing of this model can be pruned" in str(caught.value)
    assert "seen: no channel that may go: 0.weight" in str(caught.value)


def test_two_sessions_on_one_optimizer() -> None:
    model = net()
    optimizer = sgd(model)
    attached(model, optimizer)
    with untouched(model), pytest.raises(SessionError, match="another session is attached to this optimizer"):
        attached(model, optimizer)


def test_an_optimizer_is_taken_out_of_its_wrapper() -> None:
    model = net()
    optimizer = sgd(model)
    session = attached(model, Wrapper(optimizer))  # type: ignore[arg-type]  # what Accelerate hands out is like it
    for _ in train(model, optimizer, range(2)):
        continue
    assert session.step == 2


def test_a_sparse_gradient() -> None:
    model = nn.Sequential(nn.Embedding(20, 16, sparse=True), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    numbers = torch.arange(10).reshape(2, 5)
    session = effp_fx.Session(model, optimizer, 60, example_inputs=(numbers,))
    before = [value.detach().clone() for value in model.parameters()]
    model(numbers).square().mean().backward()
    with pytest.raises(SessionError) as caught:
        optimizer.step()
    assert "where: 0.weight" in str(caught.value) and "mend it: make the embedding with sparse=False" in str(
        caught.value
    )
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert session.step == 0


def test_a_step_after_the_last() -> None:
    model = net()
    optimizer = sgd(model)
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(STEPS)):
        continue
    before = [value.detach().clone() for value in model.parameters()]
    with pytest.raises(SessionError) as caught:
        next(train(model, optimizer, range(STEPS, STEPS + 1)))
    assert "seen: a step after the last of 12" in str(caught.value)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert session.step == STEPS


@pytest.mark.parametrize("step", [0, 3, 10])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite(step: int, value: float) -> None:
    """It names the layer, and no step is taken; with better data the session goes on."""
    model = net()
    optimizer = sgd(model)
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(step)):
        continue
    nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
    gradient = model.get_parameter("body.1.1.weight").grad
    assert gradient is not None
    gradient[2] = value
    saved = session.state_dict()["pressure"]["gain"]["value"]
    before = [item.detach().clone() for item in model.parameters()]
    with pytest.raises(DivergenceError) as caught:
        optimizer.step()
    assert "where: body.1.1.weight" in str(caught.value)
    assert f"NaN or infinity before step {step + 1}; the step was not taken" in str(caught.value)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert session.step == step and session.state_dict()["pressure"]["gain"]["value"] == saved
    for _ in train(model, optimizer, range(step, STEPS)):
        continue
    assert session.frozen and not held(session)


def test_a_weight_that_is_not_finite_at_an_update() -> None:
    """A learning rate that explodes in the very step after which channels are ranked; the mask stays as it was."""
    model = net()
    optimizer = sgd(model)
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(3)):
        continue
    before = session.keep
    for group in optimizer.param_groups:
        group["lr"] = 1e38
        group["weight_decay"] = 1e4
    with pytest.raises(DivergenceError) as caught:
        next(train(model, optimizer, range(3, 4)))
    assert "a weight is not finite" in str(caught.value)
    assert "where: body.0.1.weight" in str(caught.value)
    assert (session.keep == before).all() and not held(session)


@pytest.mark.parametrize("how", ["replaced", "removed", "optimizer"])
def test_a_model_that_changes_under_the_session(how: str) -> None:
    model = net()
    optimizer = sgd(model)
    attached(model, optimizer)
    for _ in train(model, optimizer, range(3)):
        continue
    layer = model.get_submodule("body.1.0")
    if how == "replaced":
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        message = "the model was changed under the session\n  where: body.1.0.weight"
    elif how == "removed":
        model.get_submodule("body").append(nn.Identity())
        del layer.weight
        layer.register_buffer("weight", torch.zeros(16, 8, 3, 3))
        message = "the model was changed under the session\n  where: body.1.0.weight"
    else:
        group = optimizer.param_groups[0]
        group["params"] = [value for value in group["params"] if value is not layer.weight]
        message = "the optimizer has lost parameters that the session holds\n  where: body.1.0.weight"
    with pytest.raises(SessionError) as caught:
        next(train(model, optimizer, range(3, 4)))
    assert message in str(caught.value)


def test_a_model_that_changed_after_the_mask_was_fixed() -> None:
    model = net()
    optimizer = sgd(model)
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(STEPS)):
        continue
    head = model.get_submodule("head.2")
    head.weight = nn.Parameter(torch.randn(5, 8))
    with pytest.raises(SessionError, match="the model was changed under the session"):
        session.compact()
