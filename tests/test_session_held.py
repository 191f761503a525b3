"""Held means held: whatever the optimizer does, what is off is exactly zero, and comes back as it was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effp_fx import Session
from effp_fx.errors import DivergenceError, SessionError
from tests.session_run import STEPS, Make, Silu, attached, batch, held, net, sgd, train

optim = torch.optim


def grouped(model: nn.Module) -> torch.optim.Optimizer:
    """No weight decay on what has one dimension, as is usual."""
    wide = [value for value in model.parameters() if value.dim() > 1]
    flat = [value for value in model.parameters() if value.dim() <= 1]
    return optim.AdamW([{"params": wide, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0, "lr": 1e-2}])


OPTIMIZERS: dict[str, Make] = {
    "sgd": sgd,
    "sgd foreach": lambda m: optim.SGD(m.parameters(), lr=0.05, momentum=0.9, foreach=True),
    "sgd fused": lambda m: optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2, fused=True),
    "adam": lambda m: optim.Adam(m.parameters(), lr=1e-2, amsgrad=True),
    "adam fused": lambda m: optim.Adam(m.parameters(), lr=1e-2, fused=True),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw in groups": grouped,
    "rmsprop": lambda m: optim.RMSprop(m.parameters(), lr=1e-3, momentum=0.9, centered=True),
    "adafactor": lambda m: optim.Adafactor(m.parameters(), lr=1e-2),
}
"""Capturable ones are for CUDA and XPU alone: torch refuses them on a CPU."""


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_zero_after_every_step(make: Make) -> None:
    model = net("silu")
    optimizer = make(model)
    session = attached(model, optimizer)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in train(model, optimizer, range(STEPS)):
        assert session.step < 2 or not held(session)
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters()), "nothing was trained"


@pytest.mark.parametrize("name", ["residual", "no_norm", "inverted_residual", "dense"])
def test_zero_in_nets_with_a_hard_case(name: str) -> None:
    model = net(name)
    optimizer = sgd(model)
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(STEPS)):
        assert session.step < 2 or not held(session)
    assert session.frozen


def test_the_beta_of_a_silu_would_drift() -> None:
    """What the holding is for: without it the same steps leave zero."""
    model = net("silu")
    optimizer = sgd(model)
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(9)):
        continue
    session.close()
    for _ in train(model, optimizer, range(9, 10)):
        assert any("bias" in name for name in held(session))


def test_accumulation_clipping_and_autocast() -> None:
    model = net("silu")
    optimizer = sgd(model)
    session = attached(model, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(2):
            images, labels = batch(2 * step + part)
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images), labels)
            (loss / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert session.step == step + 1, "a step is one of the optimizer, not a backward"
        assert session.step < 2 or not held(session)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_grad_scaler_and_a_step_that_it_skips(fused: bool) -> None:
    """With a scale of 1024 all is as without one, up to rounding, and a skipped step leaves all as it was."""
    ends = []
    for scale in (None, 1024.0):
        model = net("silu")
        optimizer = optim.Adam(model.parameters(), lr=1e-2, fused=fused)
        session = attached(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(STEPS):
            _scaled_step(model, optimizer, scaler, step)
            if scale and step == 5:
                before = described(model, session)
                _scaled_step(model, optimizer, scaler, step, spoilt=True)
                assert described(model, session) == before
            assert session.step == step + 1
            assert session.step < 2 or not held(session)
        weights = [value.detach().clone() for value in model.parameters()]
        ends.append((session.keep, session._pressure.gain.value, weights))
    assert (ends[0][0] == ends[1][0]).all()
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-3)
    assert all(torch.allclose(one, two, rtol=1e-3, atol=1e-4) for one, two in zip(ends[0][2], ends[1][2], strict=True))


def _scaled_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, step: int, spoilt: bool = False
) -> None:
    images, labels = batch(step)
    optimizer.zero_grad()
    scaler.scale(nn.functional.cross_entropy(model(images), labels)).backward()
    if spoilt:
        gradient = next(model.parameters()).grad
        assert gradient is not None
        gradient.fill_(float("inf"))
        for value in model.parameters():
            if value.dim() == 1 and value.grad is not None:
                value.grad.fill_(float("nan"))
    scaler.step(optimizer)
    scaler.update(1024.0) if scaler.is_enabled() else None


def described(model: nn.Module, session: Session) -> Any:
    """Parameters and the session's numbers, to compare."""
    state = session.state_dict()
    return (
        [value.detach().numpy().tobytes() for value in model.parameters()],
        state["step"],
        state["pressure"]["gain"]["value"],
        state["off"].tolist(),
        len(state["history"]),
    )


@pytest.mark.parametrize("make", [sgd, lambda m: optim.LBFGS(m.parameters(), lr=1e-2, max_iter=2)])
def test_a_closure(make: Make) -> None:
    """The gradient is there only after the closure was called: the pruning loss presses then, and NaN shows then."""
    model = net()
    optimizer = make(model)
    session = attached(model, optimizer, target_params=None)
    spoilt = False

    def closure() -> Tensor:
        optimizer.zero_grad()
        images, labels = batch(0)
        loss = nn.functional.cross_entropy(model(images), labels) * (float("nan") if spoilt else 1.0)
        loss.backward()
        return loss

    for step in range(4):
        assert isinstance(optimizer.step(closure) if step % 2 else optimizer.step(closure=closure), Tensor)
        assert session.step == step + 1
        assert session.step < 2 or not held(session)
    assert session._pressure.last_alpha > 0
    spoilt = True
    with pytest.raises(DivergenceError):
        optimizer.step(closure)


def test_a_compiled_model() -> None:
    try:
        model = net("silu")
        compiled: Any = torch.compile(model, backend="aot_eager")
        compiled(batch(0)[0])
    except Exception as error:  # no compiler, or none for this Python
        pytest.skip(f"torch.compile does not run here: {error}")
    optimizer = sgd(model)
    session = attached(compiled, optimizer)
    for _ in train(compiled, optimizer, range(STEPS)):
        assert session.step < 2 or not held(session)
    small = session.compact()
    assert type(small) is type(model)


def test_a_moving_average_is_masked_and_cut_like_the_model() -> None:
    model = net("silu")
    optimizer = sgd(model)
    averaged = optim.swa_utils.AveragedModel(model, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.5))
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(STEPS)):
        averaged.update_parameters(model)
    small, masked = session.compact(averaged).double().eval(), session.masked(averaged).double().eval()
    images = batch(99)[0].double()
    with torch.no_grad():
        assert relative(small(images), masked(images)) < 1e-9
        assert relative(small(images), session.compact().double().eval()(images)) > 1e-3, "it is the model's own"
    with pytest.raises(SessionError, match="has not the structure of the trained one"):
        session.compact(net("chain"))


def relative(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max() / two.abs().max())


def test_what_comes_back_is_as_it_was_when_last_alive() -> None:
    """Parameters, running statistics and both averages of Adam, told by a copy of each from before the update."""
    torch.manual_seed(0)
    model = Silu(width=36).train()
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    session = attached(model, optimizer, regrow_by="random", target_flops=0.3, target_params=None)
    last_alive: dict[tuple[int, str, int, str], Tensor] = {}
    alive_before = session.keep
    regrown = 0

    def note(*_: Any) -> None:
        if session.step + 1 in session.schedule.update_steps:
            last_alive.update(slots(session, np.flatnonzero(session.keep)))

    hook = optimizer.register_step_post_hook(note)
    optimizer._optimizer_step_post_hooks.move_to_end(hook.id, last=False)  # before the session's own
    for _ in train(model, optimizer, range(9)):
        now = session.keep
        back = np.flatnonzero(now & ~alive_before)
        for key, value in slots(session, back).items():
            assert torch.equal(value, last_alive[key]), key
            regrown += 1
        alive_before = now
    kinds = {key[3] for key in last_alive}
    assert kinds == {"value", "exp_avg", "exp_avg_sq"}
    assert any("running_var" in key[1] for key in last_alive)
    assert regrown > 40, f"too little came back to tell: {regrown}"


def slots(session: Session, channels: Any) -> dict[tuple[int, str, int, str], Tensor]:
    """All that belongs to these channels, copied."""
    found = {}
    states = session._states()
    for name, dims in session.analysis.tensors.items():
        own = dims.masked if dims.is_parameter else dims.dims
        kinds = {"value": session._tensors[name]} | {
            kind: state for kind, state in states.get(name, {}).items() if isinstance(state, Tensor) and state.dim()
        }
        for dim in own:
            for channel in channels:
                rows = torch.from_numpy(np.flatnonzero(dims.dims[dim] == channel))
                if len(rows):
                    for kind, value in kinds.items():
                        found[int(channel), name, dim, kind] = value.detach().index_select(dim, rows)
    return found


def test_the_term_in_the_users_own_loss() -> None:
    """The hook adds no pruning loss then: without a group penalty, gradients are those of the loss as it is written."""
    model = net()
    optimizer = sgd(model)
    session = attached(model, optimizer, alpha=0.3, shrink=0.0)
    seen: list[bool] = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(all(map(torch.equal, (value.grad for value in model.parameters()), gradients)))
    )
    for step in range(STEPS):
        images, labels = batch(step)
        optimizer.zero_grad()
        term = session.pruning_loss()
        (nn.functional.cross_entropy(model(images), labels) + term).backward()
        gradients = [copy.deepcopy(value.grad) for value in model.parameters()]
        optimizer.step()
        assert term.shape == ()
        assert step or float(term.detach()) == pytest.approx(0.3 * 1.0, rel=0.01), (
            "alpha times half of each cost beyond its target"
        )
    assert seen == [True] * STEPS
    assert session.history[-1].flops <= 0.5


def test_hook_and_own_term_press_alike() -> None:
    """With a fixed alpha it makes no difference who adds the term, where gradients neither rank nor shrink channels."""
    model = net()
    optimizer = sgd(model)
    session = attached(model, optimizer, alpha=0.3, importance="gamma", shrink=0.0)
    for _ in train(model, optimizer, range(4), session.pruning_loss):
        continue
    other = net()
    second = sgd(other)
    attached(other, second, alpha=0.3, importance="gamma", shrink=0.0)
    for _ in train(other, second, range(4)):
        continue
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_nothing_is_kept_aside_once_nothing_can_come_back() -> None:
    model = net()
    optimizer = sgd(model)
    session = attached(model, optimizer)
    for _ in train(model, optimizer, range(STEPS)):
        aside = session.state_dict()["aside"]
        assert bool(aside) == (bool(session.history) and not session.frozen and not session.keep.all())
    assert session.frozen and not session.keep.all()
