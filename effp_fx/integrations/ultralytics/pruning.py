"""One pruned training run of Ultralytics: makes the session in its loop, keeps it in step, compacts at the end."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from effp_fx import masking
from effp_fx.errors import SessionError
from effp_fx.integrations.ultralytics import checkpoints
from effp_fx.integrations.ultralytics.steps import Loop, loop_of
from effp_fx.models.spec import import_family
from effp_fx.schedule import Schedule, fitting
from effp_fx.session import Session
from effp_fx.subject import unwrapped

_TIMES = ("start", "end", "updates", "regrow")


class Pruning:
    """What `prune_trainer` attached to a YOLO object. The session is made when training begins.

    Args:
        options: of `effp_fx.Session`, targets included.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.session: Session | None = None
        self.best: Path | None = None
        """The compact checkpoint with the best fitness of those with the final mask, once training is over."""
        self.last: Path | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._loop: Loop | None = None
        self._judged = False

    @property
    def flops(self) -> float:
        """FLOPs of the network as it is masked now, as a part of the dense one's."""
        return self._running().flops

    @property
    def params(self) -> float:
        """Parameters likewise."""
        return self._running().params

    def begin(self, trainer: Any) -> None:
        """Make the session: all of the trainer is set up, and nothing is loaded from a checkpoint yet."""
        if self.session is not None:  # of a run that broke off
            self.session.close()
        self._check_average(trainer)
        self._loop, self._optimizer, self._judged = loop_of(trainer), trainer.optimizer, False
        network = unwrapped(trainer.model)
        steps = self._loop.steps()
        options = self.options | {"ignore": (*_names(self.options.get("ignore", ())), *_whole(network))}
        self.session = Session(network, trainer.optimizer, steps, **options)
        checkpoints.attach_state(self.session, trainer.optimizer, self._load)
        schedule = self.session.schedule
        _say(
            f"{len(self.session.analysis.groups)} channel groups; {schedule.total_steps} optimizer steps, "
            f"the mask is fixed after {schedule.freeze_step}"
        )

    def resumed(self, trainer: Any) -> None:
        """Count the steps that are left: a resumed loop steps at its first batch, and may have other batches."""
        self._recount(trainer, int(trainer.start_epoch))

    def before_step(self, trainer: Any) -> None:
        """Look whether the loop is still the one that the session was made for."""
        session, loop = self._running(), self._loop
        self._check_average(trainer)
        if trainer.optimizer is not self._optimizer:
            raise SessionError(
                "the optimizer was rebuilt while the session runs",
                seen=f"another {type(trainer.optimizer).__name__} than at the beginning",
                expected="the optimizer that the session holds, from the first step to the last",
                mend="change its param_groups in place; or give optimizer= and lr0= to train()",
            )
        if loop is not None and len(trainer.train_loader) != loop.batches:  # out of memory: smaller batches
            self._loop = loop_of(trainer)
            self._recount(trainer, int(trainer.epoch))
        if session.step >= session.schedule.total_steps:
            # Epochs that were repeated after NaN, and resumed ones, have a step more: past the freeze all are alike.
            session.step = session.schedule.total_steps - 1

    def before_validation(self, trainer: Any) -> None:
        """At the end of an epoch: what is judged and saved has the mask, and counts only once the mask is fixed.

        A moving average forgets slowly, so the channels that are off are zeroed in it as well.
        """
        session = self._running()
        self._check_average(trainer)
        _say(f"{session.flops:.1%} of the FLOPs, {session.params:.1%} of the parameters" + _fixed(session))
        if session.frozen:
            _mask(session, trainer.ema.ema)
        if not self._judged:
            trainer.best_fitness = None
            trainer.stopper.best_fitness, trainer.stopper.best_epoch = 0.0, trainer.epoch + 1
        self._judged = session.frozen

    def compact(self, trainer: Any) -> None:
        """Make best.pt and last.pt compact, before Ultralytics judges them.

        Raises SessionError where training ended before the mask was fixed; the files are dense then.
        """
        session = self._running()
        if not session.frozen:
            raise SessionError(
                "training ended before the mask was fixed",
                seen=f"{session.step} of {session.schedule.total_steps} optimizer steps",
                expected=f"{session.schedule.freeze_step} or more",
                mend=f"{trainer.last} is dense: prune_trainer(YOLO({str(trainer.last)!r}), ...), then train again",
            )
        for note in checkpoints.make_compact(session, trainer.device, trainer.last, trainer.best):
            _say(note)

    def finish(self, trainer: Any) -> None:
        """Let the files be trained further, and the optimizer go."""
        written = [path for path in (trainer.best, trainer.last) if path.exists()]
        for path in written:
            checkpoints.thaw(path)
        self.best, self.last = trainer.best, trainer.last
        self._running().close()
        _say(f"{' and '.join(path.name for path in written)} are compact: {trainer.best.parent}")

    def _running(self) -> Session:
        if self.session is None:
            raise SessionError("training has not begun", mend="yolo.train(data=..., epochs=...)")
        return self.session

    def _load(self, saved: dict[str, Any]) -> None:
        """Take the state of a checkpoint over; its schedule too, where nothing else was asked for."""
        session = self._running()
        asked = {name: self.options[name] for name in _TIMES if name in self.options}
        theirs = (saved.get("about") or {}).get("schedule") or asdict(session.schedule)
        session.schedule = replace(Schedule(**theirs), **asked)
        session.load_state_dict(saved)
        self._judged = session.frozen

    def _recount(self, trainer: Any, first_epoch: int) -> None:
        session = self._running()
        if not session.frozen:
            steps = session.step + loop_of(trainer).steps(first_epoch)
            schedule = replace(session.schedule, total_steps=steps, updates=1)
            updates = self.options.get("updates") or min(
                session.schedule.updates, fitting(steps, schedule.start, schedule.end)
            )
            session.schedule = replace(schedule, updates=updates)

    def _check_average(self, trainer: Any) -> None:
        ema = getattr(trainer, "ema", None)
        if ema is None or not getattr(ema, "enabled", True):
            raise SessionError(
                "the moving average of the weights (EMA) is off",
                seen="trainer.ema is None" if ema is None else "trainer.ema.enabled is False",
                expected="on: it is what Ultralytics judges and writes to best.pt and last.pt",
                mend="leave trainer.ema as Ultralytics makes it",
            )


def _names(ignore: Any) -> tuple[Any, ...]:
    return (ignore,) if isinstance(ignore, str | nn.Module) else tuple(ignore)


def _whole(network: nn.Module) -> tuple[str, ...]:
    """What stays whole: the decoder of RT-DETR, which Ultralytics can build again only as its yaml says."""
    tasks = import_family("ultralytics.nn.tasks", "ultralytics")
    if not isinstance(network, tasks.RTDETRDetectionModel):
        return ()
    layers: Any = network.model
    return (f"model.{len(layers) - 1}",)


def _mask(session: Session, average: nn.Module) -> None:
    tensors = {**dict(average.named_parameters()), **dict(average.named_buffers())}
    with torch.no_grad():
        for name, value in masking.masked_tensors(session.analysis.tensors, tensors, session.keep).items():
            tensors[name].copy_(value)


def _fixed(session: Session) -> str:
    return ", mask fixed" if session.frozen else f", step {session.step} of {session.schedule.freeze_step}"


def _say(line: str) -> None:
    import_family("ultralytics.utils", "ultralytics").LOGGER.info(f"effp_fx: {line}")
