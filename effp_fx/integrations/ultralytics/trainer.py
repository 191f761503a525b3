"""The trainer of Ultralytics, with the five places of its loop at which a session has to be heard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effp_fx.errors import SessionError
from effp_fx.integrations.ultralytics.pruning import Pruning

_PLACES = ("resume_training", "optimizer_step", "validate", "final_eval")


def with_session(trainer: type[Any], pruning: Pruning) -> type[Any]:
    """A subclass of a trainer class whose run is pruned.

    Raises SessionError where the class has not the methods that this rests on.
    """
    missing = [name for name in _PLACES if not callable(getattr(trainer, name, None))]
    if missing:
        raise SessionError(
            "this trainer of Ultralytics is not supported",
            where=f"{trainer.__module__}.{trainer.__name__}",
            seen=f"no {', '.join(missing)}",
            mend="a subclass of ultralytics.engine.trainer.BaseTrainer; or effp_fx.Session in your own loop",
        )

    class Pruned(trainer):  # type: ignore[misc]  # the base is known only when it runs
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            refuse(vars(self.args))

        def resume_training(self, ckpt: Any) -> None:
            pruning.begin(self)
            super().resume_training(ckpt)
            if self.start_epoch:
                pruning.resumed(self)

        def optimizer_step(self) -> None:
            pruning.before_step(self)
            super().optimizer_step()

        def validate(self) -> Any:
            pruning.before_validation(self)
            return super().validate()

        def final_eval(self) -> None:
            pruning.compact(self)
            super().final_eval()
            pruning.finish(self)

    Pruned.__name__ = Pruned.__qualname__ = trainer.__name__
    return Pruned


def refuse(arguments: Mapping[str, Any]) -> None:
    """Raise SessionError for what `train()` can be asked for and a session cannot do."""
    for name, asked, reason, mend in _REFUSED:
        value = arguments.get(name)
        if value and asked(value):
            raise SessionError(f"{name}={value!r} does not go together with prune_trainer", seen=reason, mend=mend)


def _several(device: Any) -> bool:
    return len(device) > 1 if isinstance(device, list | tuple) else "," in str(device)


_REFUSED = (
    (
        "device",
        _several,
        "for several devices Ultralytics starts new processes, which know nothing of the session: they train dense",
        "one device: device=0",
    ),
    (
        "time",
        bool,
        "how many steps a training of so many hours has is not known before it ends, and the mask has a schedule",
        "epochs=...",
    ),
    (
        "data",
        lambda data: isinstance(data, list | tuple),
        "several runs, one for each data set: a session belongs to one",
        "call prune_trainer and train() for each of them",
    ),
    (
        "distill_model",
        bool,
        "a teacher reads layers of the student, whose channels are to go",
        "prune without it, then distil into the compact best.pt without prune_trainer",
    ),
    (
        "quantize",
        lambda bits: str(bits) == "8",
        "layers with simulated INT8 are not the ones of the model",
        "prune first, then train best.pt with quantize=8",
    ),
)
