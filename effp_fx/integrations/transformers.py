"""Hugging Face Transformers: a callback of its Trainer that prunes the model in the run that trains it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from effp_fx import atomic_file
from effp_fx.errors import FileFormatError, SessionError
from effp_fx.integrations import versions
from effp_fx.integrations.attachment import Attachment
from effp_fx.session import Session

SUPPORTED = ">=4.53"
STATE = "effp_session.pt"
"""The session's state in a checkpoint's folder; read with weights_only, so that opening it runs no code."""

versions.require("transformers", SUPPORTED, extra="transformers")

from transformers import PreTrainedModel, TrainerCallback  # noqa: E402  # only after its version was checked


class EFFPCallback(TrainerCallback):
    """Attaches a Session when training begins: `Trainer(..., callbacks=[EFFPCallback(target_flops=0.5)])`.

    After `trainer.train()`, `callback.compact()` is the compact model. Every checkpoint gets a file with the session's
    state, so that `trainer.train(resume_from_checkpoint=True)` goes on bit for bit.

    Args:
        target_flops: what is kept: up to 1 a part, above 1 a count.
        target_params: the same for parameters.
        resume_from: the checkpoint that `resume_from_checkpoint` names, if it does not lie in the output folder of the
            run: the Trainer tells its callbacks the step of a checkpoint, not its place.
        options: all other options of `effp_fx.Session`, `example_inputs` among them.

    Raises, when training begins:
        SessionError: optimizer, steps or checkpoint do not fit; nothing is changed.
        FileFormatError: the state in the checkpoint is damaged.
        What `effp_fx.Session` raises.
    """

    def __init__(
        self,
        target_flops: float | None = 0.5,
        target_params: float | None = None,
        *,
        resume_from: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        options = {"target_flops": target_flops, "target_params": target_params, **options}
        self._attachment = Attachment("trainer.train()", options)
        self._resume_from = resume_from
        self._before = 0

    @property
    def session(self) -> Session | None:
        """The session; None before training has begun."""
        return self._attachment.session

    def compact(self, model: nn.Module | None = None) -> nn.Module:
        """The compact model, verified; of `model` where one is given: a moving average of the trained one.

        Raises SessionError before training, before the mask is fixed, or where `load_best_model_at_end` has brought
        back weights from before that; VerificationError.
        """
        return self._attachment.compact(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach: weights and optimizer are those of the checkpoint by now."""
        if state.global_step:
            place = self._place(args, state.global_step)
            saved = _read(place, state.global_step)
            if saved is not None:
                _load_weights(kwargs["model"], place)
                self._attachment.resume_from(saved)
        self._attachment.attach(kwargs["model"], kwargs["optimizer"], state.max_steps, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note where the session is."""
        assert self.session is not None
        self._before = self.session.step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse to go on where a step was taken that the session was not told of."""
        assert self.session is not None
        skipped = getattr(kwargs["optimizer"], "step_was_skipped", False)  # by a scaler of gradients, which is no fault
        if self.session.step > self._before or skipped:
            return
        raise SessionError(
            "the optimizer was rebuilt while the session ran",
            seen=f"step {state.global_step} was taken by another one than the session hangs on",
            expected="the optimizer that the trainer had when training began",
            mend="change its param_groups in place (rates, decay), and leave trainer.optimizer as it is",
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the session's state beside what the Trainer has written."""
        if not args.should_save or self.session is None:
            return
        folder = _folder(args.output_dir, state.global_step)
        if folder.is_dir():
            buffer = io.BytesIO()
            torch.save({"global_step": state.global_step, "session": self.session.state_dict()}, buffer)
            atomic_file.write(folder / STATE, buffer.getvalue())

    def _place(self, args: Any, step: int) -> Path:
        """The folder of the checkpoint that is resumed from: the user's word, or the one of this step."""
        if self._resume_from is not None:
            return Path(self._resume_from)
        named = args.resume_from_checkpoint  # set by those who let HfArgumentParser read it
        if isinstance(named, str) and os.path.isdir(named):
            return Path(named)
        return _folder(args.output_dir, step)


def _folder(output: str, step: int) -> Path:
    return Path(output) / f"checkpoint-{step}"


def _load_weights(model: nn.Module, folder: Path) -> None:
    """Load the checkpoint as `from_pretrained` does, which knows the older names that transformers 5 writes.

    The Trainer calls load_state_dict with these names, warns, and goes on with initial weights (DETR, RT-DETR; 5.24).
    """
    if isinstance(model, PreTrainedModel):
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())


def _read(folder: Path, step: int) -> dict[str, Any] | None:
    path = folder / STATE
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        at = int(saved["global_step"])
        session: dict[str, Any] = saved["session"]
    except Exception as error:  # of a damaged pickle anything may come
        raise FileFormatError(
            "the session's state cannot be read", where=str(path), seen=f"{type(error).__name__}: {error}"
        ) from error
    if at != step:
        raise SessionError(
            "this session's state is of another checkpoint",
            where=str(path),
            seen=f"step {at}",
            expected=f"step {step}, at which the trainer resumes",
            mend="EFFPCallback(resume_from=the folder that resume_from_checkpoint names)",
        )
    return session
