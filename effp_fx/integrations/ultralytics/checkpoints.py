"""The state of a session inside the checkpoints of Ultralytics, and those checkpoints made compact at the end."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from effp_fx import atomic_file
from effp_fx.errors import SessionError
from effp_fx.integrations.ultralytics.rebuild import configuration
from effp_fx.session import Session

KEY = "effp_fx_session"
"""In the optimizer's state: written and read with it, so that no checkpoint holds one without the other; removed with
it when Ultralytics strips a finished checkpoint."""


def attach_state(session: Session, optimizer: torch.optim.Optimizer, load: Callable[[dict[str, Any]], None]) -> None:
    """Put the session's state into the optimizer's, and hand it to `load` when that is loaded.

    From then on the optimizer takes only states with a session in them: SessionError for others.
    """

    def saved(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state[KEY] = session.state_dict()

    def loaded(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        if KEY not in state:
            raise SessionError(
                "the checkpoint holds no state of a session",
                seen="a run that was not pruned by effp_fx",
                expected="the last.pt of a run that prune_trainer had been called for",
                mend="resume it without prune_trainer; or begin a pruned run from its weights, without resume=True",
            )
        load(state[KEY])

    optimizer.register_state_dict_post_hook(saved)
    optimizer.register_load_state_dict_pre_hook(loaded)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint that this run wrote: a pickle, as all of Ultralytics' are."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return content


def write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    atomic_file.write(path, buffer.getvalue())


def make_compact(session: Session, device: torch.device, last: Path, best: Path) -> list[str]:
    """Cut the network of both checkpoints with the session's mask; they stay Ultralytics' own, in half precision.

    A best.pt with another mask (of a run that began in the same folder, or from before the mask was fixed) gives way to
    last.pt. Returns what the user should know.

    Raises:
        VerificationError: masked and compact network differ; both files stay as they were.
    """
    found = {path: read(path) for path in (last, best) if path.exists()}
    ours = {path: one for path, one in found.items() if _is_masked_by(session, one)}
    notes = [f"{path.name} was of another mask; it is now what {last.name} is" for path in found if path not in ours]
    if len(ours) > 1 and last.read_bytes() == best.read_bytes():  # the last epoch was the best
        del ours[best]
    made = {path: _compacted(session, device, one) for path, one in ours.items()}
    for path in found:
        write(path, made[path if path in made else last])
    return notes


def thaw(path: Path) -> None:
    """Let the weights of a finished checkpoint be trained: they are those of the network that is built from it."""
    checkpoint = read(path)
    checkpoint["model"].requires_grad_(True)
    write(path, checkpoint)


def _is_masked_by(session: Session, checkpoint: dict[str, Any]) -> bool:
    off = ((checkpoint.get("optimizer") or {}).get(KEY) or {}).get("off")
    return isinstance(off, torch.Tensor) and bool(np.array_equal(off.numpy(), ~session.keep))


def _compacted(session: Session, device: torch.device, checkpoint: dict[str, Any]) -> dict[str, Any]:
    small: Any = session.compact(checkpoint["ema"].float().to(device)).float().cpu()
    rebuilt = configuration(small)
    if rebuilt is not None:
        small.yaml = rebuilt
    return {**checkpoint, "ema": small.half(), "optimizer": None}
