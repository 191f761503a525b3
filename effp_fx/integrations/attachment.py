"""What the callbacks of all tools share: one session on the tool's optimizer, its state, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from effp_fx.errors import SessionError
from effp_fx.inputs import as_example, map_tensors
from effp_fx.masking import masked_tensors
from effp_fx.models.registry import reference_tensor
from effp_fx.session import Session
from effp_fx.session.checks import optimizer_of
from effp_fx.subject import network_of, unwrapped


class Attachment:
    """The session of one training run that a tool drives.

    Args:
        start: how the tool's user starts a run, for messages: "trainer.fit(...)".
        options: of the session, all but model, optimizer and steps.
    """

    def __init__(self, start: str, options: dict[str, Any]) -> None:
        self.session: Session | None = None
        self._start = start
        self._options = options
        self._saved: dict[str, Any] | None = None
        self._network: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._device = torch.device("cpu")

    def attach(self, network: nn.Module, optimizer: Any, total_steps: int, taken: int) -> None:
        """Make the session, and let it go on from the state that `resume_from` was given, if any.

        Args:
            network: what is pruned, where it is trained: on its device, with the weights of the checkpoint.
            optimizer: the tool's, wrapped or not.
            total_steps: optimizer steps of the whole run, those before an interruption included.
            taken: steps that the tool has taken already.

        Raises SessionError, and what Session raises; the optimizer then has no hook of ours.
        """
        if self.session is not None and self._saved is None:
            raise SessionError(
                "this callback has had its run",
                seen=f"a session at step {self.session.step} of {self.session.schedule.total_steps}",
                expected="one callback for one run",
                mend="take callback.compact() first, and make a new EFFPCallback for the new run",
            )
        if taken and self._saved is None:
            raise SessionError(
                "the run resumes from a checkpoint that holds no state of a session",
                seen=f"{taken} steps taken before this callback was there",
                mend="resume from a checkpoint that was written with it; or load its weights alone into a new run",
            )
        if self.session is not None:
            self.session.close()
        self._network, self._optimizer = unwrapped(network), optimizer_of(optimizer)
        self._device = reference_tensor(network).device
        session = Session(network, self._optimizer, total_steps, **self._options_there())
        if self._saved is not None:
            try:
                _check_resumed(session, self._network, self._saved)
                session.load_state_dict(self._saved)
            except BaseException:
                session.close()
                raise
        self.session, self._saved = session, None

    def resume_from(self, saved: dict[str, Any]) -> None:
        """Keep a session's state for the next `attach`."""
        self._saved = saved

    def check_optimizer(self, now: Any) -> None:
        """Raise SessionError where the tool steps with another optimizer than the session hangs on."""
        if self._optimizer is None or optimizer_of(now) is self._optimizer:
            return
        raise SessionError(
            "the optimizer was rebuilt while the session ran",
            seen=f"another {type(optimizer_of(now)).__name__} than at the start of the run",
            expected="the optimizer that the session is attached to, from the first step to the last",
            mend="change its param_groups in place (rates, decay), or unfreeze layers before the run starts",
        )

    def compact(self, model: nn.Module | None = None) -> nn.Module:
        """The compact model of the trained one, or of `model`; see `Session.compact`.

        Raises SessionError before the run, before the mask is fixed, and where the trained model's weights were
        replaced since the last step by some that were not trained under this mask.
        """
        if self.session is None or self._network is None:
            raise SessionError(
                "there is no session yet",
                expected=f"{self._start} before callback.compact()",
                mend=f"{self._start} with this callback, in this process: where a tool trains in processes that it"
                " spawns, ask for the compact model there, or load their checkpoint",
            )
        with self._where_trained():
            if model is None and self.session.frozen:
                _check_masked(self.session, self._network)
            return self.session.compact(model)

    def _options_there(self) -> dict[str, Any]:
        given = self._options.get("example_inputs")
        if given is None:
            return self._options
        there = map_tensors(lambda tensor: tensor.to(self._device), as_example(given))
        return {**self._options, "example_inputs": there}

    @contextmanager
    def _where_trained(self) -> Iterator[None]:
        """Bring the network back to the device of its example inputs: some tools move it away after the run."""
        assert self._network is not None
        now = reference_tensor(self._network).device
        self._network.to(self._device)
        try:
            yield
        finally:
            self._network.to(now)


def _not_masked(session: Session, network: nn.Module) -> str | None:
    """The first parameter in which a channel that is off is not zero; None where there is none."""
    masked = dict(session.masked(network).named_parameters())
    return next((name for name, value in network.named_parameters() if not torch.equal(value, masked[name])), None)


def _check_masked(session: Session, network: nn.Module) -> None:
    wrong = _not_masked(session, network)
    if wrong is None:
        return
    raise SessionError(
        "the weights were replaced after the last step",
        where=wrong,
        seen="channels that are off, and are not zero",
        expected=f"weights from step {session.schedule.freeze_step} on, trained under this mask",
        mend="load the last checkpoint's weights; of a moving average ask for callback.compact(its_module),"
        " which masks it first",
    )


def _check_resumed(session: Session, network: nn.Module, saved: dict[str, Any]) -> None:
    """Raise SessionError where the weights were not trained under the mask of the state; before it is loaded."""
    off = saved.get("off") if isinstance(saved, dict) else None
    if not isinstance(off, torch.Tensor) or tuple(off.shape) != session.keep.shape:
        return  # not the state of this session, and load_state_dict says so
    inner = network_of(network)[0]
    tensors = dict(inner.named_parameters())
    known = {name: dims for name, dims in session.analysis.tensors.items() if name in tensors}
    masked = masked_tensors(known, tensors, ~off.cpu().numpy())
    wrong = next((name for name, value in masked.items() if not torch.equal(value, tensors[name])), None)
    if wrong is None:
        return
    raise SessionError(
        "the model's weights are not those of the checkpoint that the session resumes from",
        where=wrong,
        seen="channels that are off, and are not zero",
        mend="look for names that the tool did not load (it may only warn), and load them before training starts",
    )
