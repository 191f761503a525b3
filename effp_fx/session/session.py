"""The session: hooks one optimizer, and prunes the user's own model while the user's own loop trains it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from effp_fx import lowering, masking, tracing
from effp_fx.errors import SessionError
from effp_fx.groups import Keep
from effp_fx.schedule import Schedule, fitting
from effp_fx.session import checks, state
from effp_fx.session.free_memory import free_memory
from effp_fx.session.history import Update, kept_by_group
from effp_fx.session.holding import Holder
from effp_fx.session.options import Options
from effp_fx.session.pressure import prepared
from effp_fx.session.ranking import Ranking
from effp_fx.session.rehearsal import rehearse
from effp_fx.session.selection import select
from effp_fx.session.shrinking import Shrinking
from effp_fx.subject import network_of, rewrapped, unwrapped
from effp_fx.tracing import Progress

_MOST = 0.1
"""The group penalty's gradient over the network's at most: three tenths ruined the YOLO-like net of the bench."""
_LAZY = 8
"""Steps from one with the group penalty to the next: a pass over all filters at each is 5 % of a small YOLO's step."""


class Session:
    """One training run in which a model is pruned to its targets: EFFP (Ko, Kang, Kim, AICAS 2024).

        session = effp_fx.Session(model, optimizer, total_steps, target_flops=0.5)
        ...                                  # the loop as it was: forward, loss, backward, optimizer.step()
        small = session.compact()

    Nothing about the model changes while it trains: channels that are off are zeros in its own parameters. Before a
    step alpha times the gradient of the pruning loss is added to the gammas; after a step what is off is zeroed; after
    some, channels are pruned and regrown. After `schedule.freeze_step` the mask is fixed and meets the targets.

    Args:
        model: what is trained; DistributedDataParallel and torch.compile around it are seen through.
        optimizer: a torch.optim.Optimizer over its parameters.
        total_steps: optimizer steps of the whole training.
        target_flops: what is kept: up to 1 a part, above 1 a count. 0.5 if neither target is given.
        target_params: the same for parameters.
        example_inputs: what `model(...)` takes; None: the family's own, or inferred.
        start, end, updates, regrow: see `Schedule`; ours, chosen by decisions 11 and 13. start=None: six sevenths of
            `end`. updates=None: twenty, or as many as there are steps for.
        round_to: channel counts become multiples of this, where a group is large enough.
        cost: what importance is divided by, as in `prune`.
        ignore: modules, names or globs whose own channels stay.
        groups: an edited groups file.
        progress: called with a line before each long step of the analysis.
        options: alpha, drift, threshold, importance, regrow_by, shrink, seed: see `Options`.

    Raises:
        SessionError: optimizer, model, steps or options do not fit together; nothing is changed.
        TargetError, UnreachableTargetError, CaptureError, InputError, NameNotFoundError, VerificationError.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        total_steps: int,
        *,
        target_flops: float | None = None,
        target_params: float | None = None,
        example_inputs: Any = None,
        start: float | None = None,
        end: float = Schedule.end,
        updates: int | None = None,
        regrow: float = Schedule.regrow,
        round_to: int = 1,
        cost: str | None = None,
        ignore: tracing.Ignore = (),
        groups: str | Path | None = None,
        progress: Progress = lambda _: None,
        **options: Any,
    ) -> None:
        first = Schedule.start / Schedule.end * end if start is None else start
        whole = Schedule(total_steps, first, end, 1, regrow)
        self.schedule = replace(whole, updates=fitting(total_steps, first, end) if updates is None else updates)
        self.options = Options.read(
            options, of="Session", beside=inspect.signature(Session).parameters.keys() - {"options"}
        )
        if target_flops is None and target_params is None:
            target_flops = 0.5
        self.targets = lowering.Targets(target_flops, target_params, round_to, cost)
        self._optimizer = checks.optimizer_of(optimizer)
        checks.check_alone(self._optimizer, Session)
        checks.check_not_sharded(model)
        self._model = unwrapped(model)
        self._network, self._path = network_of(self._model)
        self._tensors: dict[str, Tensor] = {
            **dict(self._network.named_parameters()),
            **dict(self._network.named_buffers()),
        }
        traced = rehearse(self._network, example_inputs, self.targets, ignore, groups, progress)
        self._traced = traced.settled(self._network)
        self.analysis = self._traced.analysis
        checks.check_optimizer(self.analysis, self._tensors, self._optimizer)
        self._costs = {name: build(self.analysis) for name, build in lowering.COSTS.items()}
        self._moved = checks.moved_by(self._optimizer, self._tensors)
        self._pressure = prepared(
            traced.analysis, self._costs, self.targets, self._tensors, self.options, self.schedule.freeze_step
        )
        self._ranking = Ranking(
            self.analysis, self._network, self._tensors, self.options.importance, self._pressure.magnitudes
        )
        strength = min(self.options.shrink / self.schedule.freeze_step, _MOST)
        self._shrinking = Shrinking(self.analysis, self._tensors, strength, every=_LAZY) if strength else None
        del traced
        free_memory()  # graphs are cycles, and hold the copies of the model that were tried on
        self._holder = Holder(self.analysis, self._tensors)
        self.step = 0
        self.history: list[Update] = []
        self.log: list[Callable[[Update], None]] = []
        """Called with every update, as it is made."""
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def keep(self) -> Keep:
        """The mask as it is (K): True where a channel is alive."""
        return ~self._holder.off

    @property
    def flops(self) -> float:
        """FLOPs of the network as it is masked now, as a part of the dense one's."""
        return float(self._costs["flops"](self.keep)) / self._costs["flops"].dense

    @property
    def params(self) -> float:
        """Parameters likewise."""
        return float(self._costs["params"](self.keep)) / self._costs["params"].dense

    @property
    def frozen(self) -> bool:
        """Whether the mask is fixed, so that `compact` is possible."""
        return self.step >= self.schedule.freeze_step

    def pruning_loss(self) -> Tensor:
        """alpha * L_prune, to be added to the loss by those who want it there: a float64 scalar.

        From the first call on, the hook adds no gradient of the pruning loss; that of the group penalty (`shrink`) it
        still does.
        """
        return self._pressure.term()

    def compact(self, model: nn.Module | None = None) -> nn.Module:
        """The compact model, of the class of the trained one, verified against the masked one on the example inputs.

        Args:
            model: another model of the same structure, such as a moving average of the trained one; its channels are
                masked and cut as those of the trained one. None: the trained model.

        Raises:
            SessionError: the mask is not fixed yet, or `model` has another structure.
            VerificationError: masked and compact model differ; nothing is returned.
        """
        if not self.frozen:
            raise SessionError(
                "the mask is not fixed yet",
                seen=f"step {self.step} of {self.schedule.total_steps}",
                expected=f"step {self.schedule.freeze_step} or later",
                mend="train on, or make the session with the steps that there are",
            )
        self._check_unchanged()
        outer = self._model if model is None else unwrapped(model)
        network, path = network_of(outer)
        traced = self._traced
        if network is not self._network:
            checks.check_same_structure(self._network, network)
            network = masking.masked_copy(network, self.analysis, self.keep)
            traced = traced.settled(network)
        lowered = lowering.lower(traced, network, self.keep, lambda _: None)
        if not lowered.verification.equal:
            raise lowering.differs(lowered.verification)
        return rewrapped(outer, path, lowered.model, inplace=False)

    def masked(self, model: nn.Module) -> nn.Module:
        """A copy of a model of the same structure (a moving average) with the channels that are off at zero."""
        outer = unwrapped(model)
        network, path = network_of(outer)
        checks.check_same_structure(self._network, network)
        return rewrapped(outer, path, masking.masked_copy(network, self.analysis, self.keep), inplace=False)

    def close(self) -> None:
        """Take the hooks off the optimizer; what is off stays zero only as far as training leaves it so."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed session needs beside the states of model and optimizer: tensors, numbers and strings,
        so that `torch.load(weights_only=True)` takes it."""
        return {
            "version": state.VERSION,
            "about": self._about(),
            "step": self.step,
            "off": torch.from_numpy(self._holder.off.copy()),
            "aside": state.packed(self._holder.aside),
            "ranking": self._ranking.state_dict(),
            "pressure": self._pressure.state_dict(),
            "shrinking": None if self._shrinking is None else self._shrinking.length,
            "history": [update.to_dict() for update in self.history],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where another session of the same model and options was; model and optimizer are loaded beside it.

        Raises SessionError where it is of another model, targets or schedule; nothing is changed then.
        """
        state.check(saved, self._about())
        self.step = int(saved["step"])
        self._holder.restore(saved["off"].cpu().numpy().copy(), state.unpacked(saved["aside"]))
        self._holder.zero()  # what was loaded beside it may be a moving average, which forgets slowly
        self._ranking.load_state_dict(saved["ranking"])
        self._pressure.load_state_dict(saved["pressure"])
        if self._shrinking is not None:
            self._shrinking.length = saved["shrinking"]
        self.history[:] = [Update(**update) for update in saved["history"]]

    def _about(self) -> dict[str, Any]:
        return state.about(self.analysis, self.targets, self.schedule)

    def _before_step(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.step >= self.schedule.total_steps:
            raise SessionError(
                "the session is over",
                seen=f"a step after the last of {self.schedule.total_steps}",
                mend="small = session.compact(); or session.close() and train on; or a larger total_steps",
            )
        if checks.skipped(self._optimizer):
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._press()
            return None

        def pressed() -> Any:  # the gradient is there only after the optimizer has called the closure
            loss = closure()
            self._press()
            return loss

        if len(args) > 1:
            return (args[0], pressed, *args[2:]), kwargs
        return args, {**kwargs, "closure": pressed}

    def _press(self) -> None:
        if not self.step:  # weights may have been loaded, or broadcast, since the session was made
            checks.check_dense_gradients(self.analysis, self._tensors)
            self._pressure.refer_to_groups(self.analysis)
        scale = getattr(self._optimizer, "grad_scale", None)
        if not self.frozen:
            self._ranking.observe(self.keep, scale)  # of the network's gradient alone
            if self._shrinking is not None:
                self._shrinking.press(self.keep, self.step, scale)
        self._pressure.press(scale, self.step, silent=self.frozen)  # last: it measures what gradients move

    def _after_step(self, *_: Any) -> None:
        if checks.skipped(self._optimizer):
            return
        self.step += 1
        self._holder.zero()
        if self.schedule.is_update(self.step):
            self._update()

    def _states(self) -> dict[str, dict[str, Any]]:
        return {
            name: self._optimizer.state[value]
            for name, value in self._tensors.items()
            if isinstance(value, nn.Parameter) and value in self._optimizer.state
        }

    def _update(self) -> None:
        """Bring everything back as it was when last alive, choose anew among all channels, take the rest off."""
        self._check_unchanged()
        self._pressure.check_finite(self.step)
        before, states = self._holder.off, self._states()
        loss, _ = self._pressure.value()
        self._holder.release(states)
        off = before
        try:
            share = self.schedule.regrow_share(self.step)
            scores = self._ranking.scores(~before)
            seed = self.options.seed + self.step
            worth = self._ranking.worth(~before)
            off = ~select(self.analysis, self.targets, scores, ~before, share, self.options.regrow_by, seed, worth)
        finally:  # whatever goes wrong in the choice, what was held is held again
            self._holder.hold(off, states, forever=self.frozen)
        self._record(before, off, share, loss)

    def _check_unchanged(self) -> None:
        checks.check_unchanged(self._tensors, self._moved, self._network, self._optimizer)

    def _record(self, before: Keep, off: Keep, share: float, loss: float) -> None:
        made = Update(
            step=self.step,
            flops=self.flops,
            params=self.params,
            kept=kept_by_group(self.analysis, ~off),
            pruned=int(np.count_nonzero(off & ~before)),
            regrown=int(np.count_nonzero(before & ~off)),
            given_back=share,
            pruning_loss=loss,
            alpha=self._pressure.last_alpha,
            final=self.frozen,
        )
        self.history.append(made)
        for listener in self.log:
            listener(made)
