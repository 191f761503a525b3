"""Lightning: a callback that prunes the module's network in the run that trains it."""

from __future__ import annotations

import importlib
import math
import sys
from typing import TYPE_CHECKING, Any

from torch import nn

from effp_fx.errors import SessionError
from effp_fx.integrations import versions
from effp_fx.integrations.attachment import Attachment
from effp_fx.session import Session
from effp_fx.session.checks import check_not_sharded
from effp_fx.subject import unwrapped

SUPPORTED = ">=2.4,!=2.6.2,!=2.6.3"
_MALICIOUS = "2.6.2 and 2.6.3 were malicious releases that steal credentials when imported (GHSA-w37p-236h-pfx3)"
_NAMES = {"lightning": "lightning", "pytorch_lightning": "pytorch-lightning"}
"""Module -> distribution. Both hold the same Lightning; a program uses one of them."""


def _lightning() -> Any:
    """The one of the two packages that is in use; no line of a malicious release is run on the way."""
    found = [module for module, distribution in _NAMES.items() if versions.installed(distribution)]
    for module in found or ["lightning"]:
        versions.require(_NAMES[module], SUPPORTED, extra="lightning", because=_MALICIOUS)
    in_use = next((module for module in found if module in sys.modules), found[0])
    return importlib.import_module("lightning.pytorch" if in_use == "lightning" else in_use)


if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule
else:
    _in_use = _lightning()
    Callback, LightningModule = _in_use.Callback, _in_use.LightningModule


class EFFPCallback(Callback):  # type: ignore[misc]  # Lightning's types are not followed: they take mypy minutes
    """Attaches a Session when training starts: `Trainer(callbacks=[EFFPCallback(target_flops=0.5)])`.

    After `trainer.fit(...)`, `callback.compact()` is the compact network. Lightning's checkpoints hold the session's
    state, so that `trainer.fit(..., ckpt_path=...)` goes on bit for bit.

    Args:
        target_flops: what is kept: up to 1 a part, above 1 a count.
        target_params: the same for parameters.
        network: the path in the LightningModule of what is pruned ("model", "net.backbone"). None: its only child with
            parameters, or where it has several, and a forward of its own, the LightningModule itself.
        optimizer: which one, where configure_optimizers returns several.
        total_steps: optimizer steps of the whole run. None asks the trainer, which knows unless optimization is manual.
        options: all other options of `effp_fx.Session`, `example_inputs` among them.

    Raises, when training starts:
        SessionError: optimizers, steps, strategy or checkpoint do not fit; nothing is changed.
        What `effp_fx.Session` raises.
    """

    def __init__(
        self,
        target_flops: float | None = 0.5,
        target_params: float | None = None,
        *,
        network: str | None = None,
        optimizer: int | None = None,
        total_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        options = {"target_flops": target_flops, "target_params": target_params, **options}
        self._attachment = Attachment("trainer.fit(...)", options)
        self._network, self._which, self._total_steps = network, optimizer, total_steps

    @property
    def session(self) -> Session | None:
        """The session; None before training has started."""
        return self._attachment.session

    def compact(self, model: nn.Module | None = None) -> nn.Module:
        """The compact network, verified; of `model` where one is given: a moving average of the network.

        Raises SessionError before fit, or before the mask is fixed; VerificationError.
        """
        return self._attachment.compact(model)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach: the weights, the optimizer and our own state are those of the checkpoint by now."""
        check_not_sharded(trainer.strategy.model or pl_module)
        if unwrapped(trainer.strategy.model or pl_module) is not pl_module:
            raise SessionError(
                "this strategy replaces the module that is trained",
                seen=f"{type(trainer.strategy).__name__} around {type(trainer.strategy.model).__name__}",
                expected="whole parameters on every rank",
                mend='Trainer(strategy="auto") or "ddp"',
            )
        optimizer = trainer.optimizers[self._index(trainer)]
        steps = self._steps(trainer, pl_module)
        self._attachment.attach(_network_in(pl_module, self._network), optimizer, steps, trainer.global_step)

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Refuse to go on where the trainer has another optimizer than when training started."""
        self._attachment.check_optimizer(trainer.optimizers[self._index(trainer)])

    def state_dict(self) -> dict[str, Any]:
        """The session's, for Lightning's checkpoint: tensors, numbers and strings."""
        return {} if self.session is None else {"session": self.session.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until training starts; it is checked then."""
        self._attachment.resume_from(state_dict.get("session", state_dict))

    def _index(self, trainer: Any) -> int:
        kinds = [type(optimizer).__name__ for optimizer in trainer.optimizers]
        if len(kinds) == 1 and self._which is None:
            return 0
        if self._which is not None and 0 <= self._which < len(kinds):
            return self._which
        raise SessionError(
            "a session attaches to one optimizer",
            where="configure_optimizers",
            seen=", ".join(f"{index}: {kind}" for index, kind in enumerate(kinds)),
            expected="one, or the number of the one that moves the network that is pruned",
            mend="EFFPCallback(optimizer=0)",
        )

    def _steps(self, trainer: Any, pl_module: Any) -> int:
        if self._total_steps is not None:
            return self._total_steps
        if not pl_module.automatic_optimization:
            raise SessionError(
                "with manual optimization nobody but you knows the number of steps",
                where=type(pl_module).__name__,
                mend="EFFPCallback(total_steps=calls of the optimizer's step() in the whole run)",
            )
        steps = trainer.estimated_stepping_batches
        if not math.isfinite(steps) or steps < 1:
            raise SessionError(
                "the trainer does not know how long it will train",
                seen=f"max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}",
                expected="an end: the mask is fixed when a part of all steps is done",
                mend="Trainer(max_epochs=...) with a loader that has a length, or EFFPCallback(total_steps=...)",
            )
        return int(steps)


def _network_in(module: Any, path: str | None) -> nn.Module:
    """What is pruned of a LightningModule."""
    known: dict[str, nn.Module] = dict(module.named_modules())
    if path is not None and path in known:
        return known[path]
    trained = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    if path is None and len(trained) == 1:
        return known[trained[0]]
    if path is None and type(module).forward is not LightningModule.forward:
        return known[""]
    children = f"children with parameters: {', '.join(trained) or 'none'}"
    raise SessionError(
        "it is not clear which part of the LightningModule is pruned" if path is None else f"no module {path!r} in it",
        where=type(module).__name__,
        seen=children if path is not None else f"{children}; and no forward of its own",
        mend=f'EFFPCallback(network="{trained[0] if trained else "model"}")',
    )
