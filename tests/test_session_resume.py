"""A session that is saved and resumed goes on bit for bit, wherever it was cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from effp_fx import Session
from effp_fx.errors import SessionError
from tests.session_run import STEPS, attached, net, sgd, train
from tests.untouched import untouched


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def started(make: Any) -> tuple[nn.Module, torch.optim.Optimizer, Session]:
    model = net("silu")
    optimizer = make(model)
    options = {"regrow_by": "random", "regrow": 0.8, "target_flops": 0.4}
    return model, optimizer, attached(model, optimizer, **options)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer, session: Session) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "session": session.state_dict()}


def same(one: Any, two: Any) -> bool:
    """Equal to the last bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@pytest.mark.parametrize("make", [sgd, adam])
def test_bit_for_bit_from_wherever_it_was_cut(make: Any, tmp_path: Path) -> None:
    """Before the first step, in stage 1, at an update, between two, at the last one, and after it."""
    model, optimizer, session = started(make)
    cuts = (0, 1, 2, 5, 8, 10)
    torch.save(everything(model, optimizer, session), tmp_path / "0")
    for _ in train(model, optimizer, range(STEPS)):
        if session.step in cuts:
            torch.save(everything(model, optimizer, session), tmp_path / str(session.step))
    wanted = everything(model, optimizer, session)
    assert any(update.regrown for update in session.history), "nothing came back, which proves little"
    for cut in cuts:
        model, optimizer, session = started(make)
        for _ in train(model, optimizer, range(100, 103)):  # as if from other weights: all of it is overwritten
            continue
        saved = torch.load(tmp_path / str(cut), weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        session.load_state_dict(saved["session"])
        assert session.step == cut
        for _ in train(model, optimizer, range(cut, STEPS)):
            continue
        assert same(everything(model, optimizer, session), wanted), cut
    assert session.compact() is not None


RUN = """
import sys, os, signal, torch
from tests.test_session_resume import adam, everything, started
from tests.session_run import STEPS, train
torch.set_num_threads(1)
path, stop = sys.argv[1], int(sys.argv[2])
model, optimizer, session = started(adam)
if os.path.exists(path):
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    session.load_state_dict(saved["session"])
for _ in train(model, optimizer, range(session.step, STEPS)):
    torch.save(everything(model, optimizer, session), path + ".part")
    os.replace(path + ".part", path)
    if session.step == stop:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_killed_and_resumed_in_processes_of_their_own(tmp_path: Path) -> None:
    path, ends = tmp_path / "checkpoint", []
    for stop in (1, 4, 9, 0):
        command = [sys.executable, "-c", RUN, str(path), str(stop)]
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, env={**os.environ, "PYTHONPATH": "."})
        ends.append(done.returncode)
    assert ends == [-signal.SIGKILL] * 3 + [0]
    model, optimizer, session = started(adam)
    for _ in train(model, optimizer, range(STEPS)):
        continue
    assert same(torch.load(path, weights_only=True), everything(model, optimizer, session))


def test_a_state_is_a_copy() -> None:
    """What was saved does not change as training goes on."""
    model, optimizer, session = started(adam)
    for _ in train(model, optimizer, range(3)):
        continue
    saved = session.state_dict()
    off, aside = saved["off"].clone(), {key: value.clone() for key, value in saved["aside"].items()}
    for _ in train(model, optimizer, range(3, 7)):
        continue
    assert torch.equal(saved["off"], off) and same(saved["aside"], aside)
    assert len(saved["history"]) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda saved: [], "this is not the state of a session"),
        (lambda saved: {"step": 1}, "this is not the state of a session"),
        (lambda saved: saved | {"version": 99}, "the session's state is of another version"),
    ],
)
def test_what_is_no_state_is_refused(spoil: Any, message: str) -> None:
    model, _optimizer, session = started(adam)
    before = session.state_dict()
    with untouched(model), pytest.raises(SessionError, match=message):
        session.load_state_dict(spoil(session.state_dict()))
    assert same(session.state_dict(), before)


@pytest.mark.parametrize(
    ("name", "options", "differing"),
    [
        ("residual", {}, "model"),
        ("silu", {"target_flops": 0.45}, "targets"),
        ("silu", {"total_steps": 2 * STEPS}, "schedule"),
    ],
)
def test_the_state_of_another_session_is_refused(name: str, options: Any, differing: str) -> None:
    _, _, session = started(adam)
    model = net(name)
    options = {"regrow_by": "random", "regrow": 0.8, "target_flops": 0.4} | options
    other = attached(model, adam(model), **options)
    before = other.state_dict()
    with untouched(model), pytest.raises(SessionError, match=f"another {differing}") as caught:
        other.load_state_dict(session.state_dict())
    assert "to mend it: make the session with the model, targets and steps" in str(caught.value)
    assert same(other.state_dict(), before)
