"""Attaches a session to a YOLO object: what is checked before, and the next `train()` that is pruned."""

from __future__ import annotations

import inspect
from typing import Any

from packaging.version import Version
from torch import nn

from effp_fx.errors import SessionError
from effp_fx.integrations.ultralytics.pruning import Pruning
from effp_fx.integrations.ultralytics.trainer import refuse, with_session
from effp_fx.models.spec import import_family
from effp_fx.session import Session
from effp_fx.session.options import Options

OLDEST = Version("8.3")
_TRAIN = "train"


def prune_trainer(
    yolo: Any,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    **session_options: Any,
) -> Pruning:
    """Make the next `yolo.train(...)` prune while it trains; best.pt and last.pt are compact checkpoints then.

        yolo = YOLO("yolo11n.yaml")
        prune_trainer(yolo, target_flops=0.5)
        yolo.train(data="data.yaml", epochs=100)

    Training goes on as Ultralytics does it. Its optimizer steps are counted ahead (warm-up and accumulation included);
    the mask is fixed after `end` of them (35 %). best.pt is the best of the epochs from then on. Both files hold
    Ultralytics' and torch's classes only. To resume a run that broke off, do the same with its last.pt and
    `resume=True`.

    Args:
        yolo: a `YOLO` or `RTDETR` object, from a yaml or a .pt, whose training has not begun.
        target_flops: what is kept: up to 1 a part, above 1 a count. 0.5 if neither target is given.
        target_params: the same for parameters.
        session_options: of `effp_fx.Session`.

    Returns what holds the session while training runs, and the paths of the checkpoints after it.

    Raises:
        SessionError: the object, the version or an option is not one that can be pruned; nothing is changed.
    """
    _check_version(import_family("ultralytics", "ultralytics").__version__)
    _check_object(yolo)
    _check_options(session_options)
    if target_flops is None and target_params is None:
        target_flops = 0.5
    options = {"target_flops": target_flops, "target_params": target_params, **session_options}
    pruning = Pruning(options)

    def train(trainer: type[Any] | None = None, **arguments: Any) -> Any:
        refuse({**yolo.overrides, **arguments})
        chosen = with_session(trainer or yolo._smart_load("trainer"), pruning)
        result = type(yolo).train(yolo, trainer=chosen, **arguments)
        delattr(yolo, _TRAIN)  # the next one trains what is compact now
        return result

    setattr(yolo, _TRAIN, train)
    return pruning


def _check_version(version: str) -> None:
    if Version(version) < OLDEST:
        raise SessionError(
            "this version of Ultralytics is not supported",
            seen=version,
            expected=f"{OLDEST} or later",
            mend='pip install -U "effp-fx[ultralytics]"',
        )


def _check_object(yolo: Any) -> None:
    kind = import_family("ultralytics.engine.model", "ultralytics").Model
    if not isinstance(yolo, kind) or not isinstance(yolo.model, nn.Module):
        seen = type(yolo).__name__
        raise SessionError(
            "prune_trainer takes a YOLO object that can be trained",
            seen=f"a {seen} around {yolo.model!r}" if isinstance(yolo, kind) else f"a {seen}",
            mend='yolo = YOLO("yolo11n.yaml")   # or your .pt; then prune_trainer(yolo, target_flops=0.5)',
        )
    if _TRAIN in vars(yolo):
        raise SessionError(
            "prune_trainer was called for this object already",
            mend="call it once before train(); for other targets make a new YOLO object",
        )
    trainer = getattr(yolo, "trainer", None)
    if getattr(trainer, "optimizer", None) is not None and not getattr(trainer, "stop", False):
        raise SessionError(
            "training of this object has begun",
            seen="an optimizer that has not come to its last epoch",
            mend="call prune_trainer before train(); where a run broke off, make a new YOLO object from its last.pt",
        )


def _check_options(options: dict[str, Any]) -> None:
    """Refuse what a session does not take, before data is read and a folder is made."""
    ours = {"model", "optimizer", "total_steps"}
    taken = ours & options.keys()
    if taken:
        raise SessionError(
            f"prune_trainer does not take {min(taken)}", mend="leave it out: they are those of Ultralytics' own loop"
        )
    Options.read(options, of="prune_trainer", beside=inspect.signature(Session).parameters.keys() - ours - {"options"})
