"""A session's state as tensors, numbers and strings, and what makes one state fit one session."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from effp_fx.errors import SessionError
from effp_fx.groups import Analysis
from effp_fx.lowering import Targets
from effp_fx.schedule import Schedule
from effp_fx.session.holding import Slot

VERSION = 4
_KEYS = {"version", "about", "step", "off", "aside", "ranking", "pressure", "shrinking", "history"}


def about(analysis: Analysis, targets: Targets, schedule: Schedule) -> dict[str, Any]:
    """What two sessions must share for the state of one to be of use to the other; plain JSON values."""
    groups = json.dumps([(group.name, group.start, group.stop) for group in analysis.groups])
    return {
        "model": hashlib.sha256(groups.encode()).hexdigest()[:16],
        "targets": asdict(targets),
        "schedule": asdict(schedule),
    }


def check(saved: Any, wanted: Mapping[str, Any]) -> None:
    """Raise SessionError unless this is the state of a session of the same model, targets and schedule."""
    if not isinstance(saved, dict) or not saved.keys() >= _KEYS:
        raise SessionError(
            "this is not the state of a session",
            seen=f"the keys {sorted(map(str, saved))[:6]}" if isinstance(saved, dict) else type(saved).__name__,
            mend="save session.state_dict() beside those of model and optimizer",
        )
    if saved["version"] != VERSION:
        raise SessionError(
            "the session's state is of another version",
            seen=str(saved["version"]),
            expected=str(VERSION),
            mend="resume with the effp_fx that wrote it",
        )
    differing = [name for name, value in wanted.items() if saved["about"].get(name) != value]
    if differing:
        raise SessionError(
            f"the state is of a session with another {' and '.join(differing)}",
            seen=str({name: saved["about"].get(name) for name in differing}),
            expected=str({name: wanted[name] for name in differing}),
            mend="make the session with the model, targets and steps that it was saved with",
        )


def packed(aside: Mapping[Slot, Tensor]) -> dict[str, Tensor]:
    """What is kept on the side under names of one string each, copied."""
    return {f"{name}|{dim}|{kind}": value.clone() for (name, dim, kind), value in aside.items()}


def unpacked(aside: Mapping[str, Tensor]) -> dict[Slot, Tensor]:
    """The inverse of `packed`."""
    slots: dict[Slot, Tensor] = {}
    for key, value in aside.items():
        name, dim, kind = key.rsplit("|", 2)
        slots[name, int(dim), kind] = value
    return slots
