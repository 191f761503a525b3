"""The end of a session: targets met from above, a mask that stays, a compact model that equals the masked one."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import effp_fx
from effp_fx import Session, models
from effp_fx.errors import SessionError
from tests.session_run import STEPS, attached, batch, held, net, sgd, train
from tests.untouched import described, untouched


def unused(session: Session, target: float) -> dict[str, float]:
    """For each cost what is left below the target, in units of the costliest channel that is off."""
    found = {}
    for name, cost in session._costs.items():
        steps = cost.marginal(session.keep)
        blocks = [
            steps[group.start : group.stop][~session.keep[group.start : group.stop]].max(initial=0.0)
            * max(group.multiple_of, session.targets.round_to)
            for group in session.analysis.groups
        ]
        found[name] = (target * cost.dense - cost(session.keep)) / max(blocks)
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chain", {"target_flops": 0.4, "target_params": None}),
        ("chain", {"target_flops": None, "target_params": 0.4}),
        ("residual", {"target_flops": 0.5, "target_params": 0.5}),
        ("no_norm", {"target_flops": 0.6, "target_params": None}),
        ("chain", {"target_flops": 0.5, "target_params": None, "round_to": 4}),
        ("residual", {"target_flops": 0.5, "target_params": None, "regrow_by": "random", "importance": "l1"}),
    ],
    ids=str,
)
def test_targets_are_met_from_above_and_compact_equals_masked(name: str, options: dict[str, Any]) -> None:
    model = net(name)
    optimizer = sgd(model)
    session = attached(model, optimizer, **options)
    heard: list[Any] = []
    session.log.append(heard.append)
    fixed = None
    for _ in train(model, optimizer, range(STEPS)):
        assert session.frozen == (session.step >= 8)
        fixed = session.keep if session.step == 8 else fixed
    assert fixed is not None and (session.keep == fixed).all(), "the mask moved after it was fixed"
    assert [update.step for update in heard] == [2, 4, 6, 8] == [update.step for update in session.history]
    last = session.history[-1]
    assert (last.final, last.given_back, last.kept) == (True, 0.0, {g.name: kept(g, fixed) for g in groups(session)})
    asked = {k[7:]: v for k, v in options.items() if k.startswith("target") and v is not None}
    left = {cost: unused(session, target)[cost] for cost, target in asked.items()}
    assert all(value >= 0 for value in left.values()), left
    assert min(left.values()) < 1, left
    if "round_to" in options:
        assert all(kept(g, fixed) % 4 == 0 for g in groups(session))
    same_and_still_trains(model, session)


@pytest.mark.parametrize(
    ("options", "steps", "updates"),
    [
        ({}, (300, 350), 20),
        ({"end": 0.7}, (600, 700), 20),
        ({"start": 0.1}, (100, 350), 20),
        ({"end": 0.02}, (17, 20), 4),
    ],
    ids=str,
)
def test_the_first_update_comes_late_wherever_the_last_one_is(
    options: dict[str, float], steps: tuple[int, int], updates: int
) -> None:
    model = net()
    session = Session(model, sgd(model), 1000, example_inputs=batch(0, 2)[0], **options)
    found = session.schedule.update_steps
    assert (found[0], found[-1]) == steps and len(found) == updates


def groups(session: Session) -> Any:
    return session.analysis.groups


def kept(group: Any, keep: Any) -> int:
    return int(keep[group.start : group.stop].sum())


def same_and_still_trains(model: nn.Module, session: Session) -> None:
    with untouched(model):
        small = session.compact()
    images, labels = batch(99)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.eval()(torch.rand(2, 3, 16, 16))
    assert counter.get_total_flops() == pytest.approx(session.flops * session._costs["flops"].dense)
    assert sum(v.numel() for v in small.parameters()) == round(session.params * session._costs["params"].dense)
    exact, masked = copy.deepcopy(small).double().eval(), copy.deepcopy(model).double().eval()
    with torch.no_grad():
        one, two = exact(images.double()), masked(images.double())
    assert float((one - two).abs().max() / two.abs().max()) < 1e-9
    optimizer = sgd(small.train())
    before = [value.detach().clone() for value in small.parameters()]
    nn.functional.cross_entropy(small(images), labels).backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


def test_not_before_the_mask_is_fixed() -> None:
    model = net()
    optimizer = sgd(model)
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(7)):
        with pytest.raises(SessionError) as caught:
            session.compact()
        assert f"seen: step {session.step} of 12" in str(caught.value)
        assert "expected: step 8 or later" in str(caught.value)
    for _ in train(model, optimizer, range(7, 8)):
        assert effp_fx.plan_of(session.compact()) is not None


def test_nothing_shows_on_the_model() -> None:
    """Class, structure, keys, hooks and pickles are what they were; so are the random generators."""
    model = net()
    optimizer = sgd(model)
    pickled, names = pickle.dumps(model), list(model.state_dict())
    with untouched(model):
        session = attached(model, optimizer)
    assert pickle.dumps(model) == pickled
    keys = set(described(model))
    for _ in train(model, optimizer, range(3)):
        continue
    assert not session.keep.all()
    assert set(described(model)) == keys
    other = pickle.loads(pickle.dumps(model))
    assert list(other.state_dict()) == list(model.state_dict()) == names
    assert all(torch.equal(one, two) for one, two in zip(other.parameters(), model.parameters(), strict=True))
    assert not pickle.loads(pickle.dumps(optimizer))._optimizer_step_pre_hooks


def test_after_close_the_optimizer_is_free() -> None:
    model = net()
    optimizer = sgd(model)
    session = attached(model, optimizer)
    session.close()
    for _ in train(model, optimizer, range(STEPS + 2)):
        assert session.step == 0
    attached(model, optimizer)


def test_weights_loaded_and_layers_frozen_after_the_start() -> None:
    """Magnitudes count from what a group has at the first step; a gamma that is frozen on the way has no slope."""
    model, source = net(), net()
    optimizer = sgd(model)
    session = attached(model, optimizer)
    with torch.no_grad():
        for value in source.parameters():
            value.mul_(3.0)
    model.load_state_dict(source.state_dict())
    assert float(session._pressure.value()[1].mean()) > 2
    for _ in train(model, optimizer, range(1)):
        assert float(session._pressure.value()[1].mean()) == pytest.approx(1, abs=0.2)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.weight.requires_grad_(False)
    for _ in train(model, optimizer, range(1, STEPS)):
        assert session.step < 2 or not held(session)
    session.compact()


def test_a_head_that_another_optimizer_moves() -> None:
    """What is never masked need not be in the optimizer, and is not missed at an update."""
    model = net()
    head = {id(value) for value in model.get_submodule("head").parameters()}
    body = [value for value in model.parameters() if id(value) not in head]
    optimizer = torch.optim.SGD(body, lr=0.05)
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(STEPS)):
        continue
    assert session.history[-1].flops <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["effp:ssd_small?num_classes=13&size=64", "effp:yolo_small?num_classes=13&size=64"])
def test_a_detector(spec: str) -> None:
    """Real losses, SGD, both targets; detections of masked and compact one by one in float64."""
    torch.manual_seed(0)
    model = models.build(spec).model.train()
    optimizer = sgd(model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    session = attached(model, optimizer, example_inputs=None)
    images = [torch.rand(3, 64, 64) for _ in range(4)]
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 20.0, 60.0, 50.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.stack([value.sum() for value in model(images, targets).values()]).sum().backward()
        optimizer.step()
        assert session.step < 2 or not held(session)
    assert all(0 <= value < 1 for value in unused(session, 0.5).values())
    small = session.compact().double().eval()
    with torch.no_grad():
        one, two = small(doubled(images)), model.double().eval()(doubled(images))
    assert any(len(found["scores"]) for found in two)
    for found, wanted in zip(one, two, strict=True):
        for key in ("boxes", "scores", "labels"):
            assert torch.allclose(found[key], wanted[key], rtol=1e-9, atol=1e-9)


def doubled(images: list[torch.Tensor]) -> list[torch.Tensor]:
    return [image.double() for image in images]


def test_history_is_plain_numbers() -> None:
    model = net()
    optimizer = sgd(model)
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(3)):
        continue
    record = session.history[0].to_dict()
    assert record["step"] == 2 and record["pruned"] == np.count_nonzero(~session.keep) and record["regrown"] == 0
    assert record["alpha"] == 0, "the first step that presses is the one that knows what two steps have moved"
    assert record["flops"] == session.flops and record["params"] == session.params
    assert sum(record["kept"].values()) == np.count_nonzero(session.keep)
    assert record["pruning_loss"] > 0 and not record["final"]
    for _ in train(model, optimizer, range(3, 6)):
        continue
    assert session.history[-1].alpha > 0
