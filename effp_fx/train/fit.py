"""`prune(fit=...)`: a session through the user's own loop, or through ours over the user's batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from effp_fx import binding
from effp_fx.errors import SessionError
from effp_fx.module_copy import copied
from effp_fx.plan import plan_of
from effp_fx.session import Session
from effp_fx.subject import network_of, unwrapped
from effp_fx.train.loop import Loop
from effp_fx.train.recipe import Recipe

SessionFactory = Callable[..., Session]
"""`(optimizer, total_steps, **options) -> Session`."""
Fit = Callable[[nn.Module, SessionFactory], Any]

_MEND = "def fit(model, session_factory): make the optimizer; session_factory(optimizer, total_steps); train"


def fitted(model: nn.Module, fit: Fit | Iterable[Any], epochs: int | None, **options: Any) -> nn.Module:
    """Train a copy of the model with a session, and return the compact model.

    Args:
        model: untouched.
        fit: a function of a model and a session factory that trains the model, or batches for our own loop. What the
            function returns is compacted in place of the trained model, if it is a module: its moving average.
        epochs: passes over the batches; for a function it has no meaning.
        options: of the session.

    Raises:
        SessionError: fit made no session, or two, or took too few steps; epochs are missing or of no use.
        Whatever fit and the session raise.
    """
    run = _checked(fit, epochs)
    trained = copied(model)
    made: list[Session] = []

    def session_factory(optimizer: Any, total_steps: int, **more: Any) -> Session:
        if made:
            raise SessionError(
                "fit asked for a second session",
                seen=f"the first has {made[0].schedule.total_steps} steps",
                expected="one session for the whole training",
                mend="call session_factory once, with the optimizer steps of all epochs",
            )
        made.append(Session(trained, optimizer, total_steps, **{**options, **more}))
        return made[0]

    try:
        returned = run(trained, session_factory)
        if not made:
            raise SessionError("fit made no session", seen="session_factory was not called", mend=_MEND)
        average = returned if isinstance(returned, nn.Module) and unwrapped(returned) is not trained else None
        return made[0].compact(average)
    finally:
        for session in made:
            session.close()


def replaced(model: nn.Module, small: nn.Module) -> nn.Module:
    """The user's model itself, cut and filled as the compact one."""
    network, compact = network_of(model)[0], network_of(small)[0]
    binding.apply(network, plan_of(compact), inplace=True)
    network.load_state_dict(compact.state_dict())
    return model


def _checked(fit: Any, epochs: int | None) -> Fit:
    if callable(fit):
        if epochs is not None:
            raise SessionError(
                "epochs are for a loader", seen="a function as fit", mend="leave epochs out: the loop is your own"
            )
        own: Fit = fit
        return own
    if not isinstance(fit, Iterable) or isinstance(fit, str | bytes):
        raise SessionError("fit is neither a function nor a loader", seen=type(fit).__name__, mend=_MEND)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise SessionError(
            "a loader needs the number of epochs", seen=f"epochs={epochs!r}", mend="prune(model, fit=loader, epochs=30)"
        )
    return _over(fit, epochs)


def _over(batches: Iterable[Any], epochs: int) -> Fit:
    """Our own loop, with the numbers of `Recipe`, over the user's batches."""
    length = getattr(batches, "__len__", None)
    # What has no length, or can be gone through once only, is kept.
    kept = batches if length is not None else list(batches)

    def fit(model: nn.Module, session_factory: SessionFactory) -> None:
        recipe = Recipe(epochs=epochs)
        steps = epochs * len(kept)  # type: ignore[arg-type]  # it has a length, or is a list
        optimizer = recipe.build_optimizer(model)
        session_factory(optimizer, steps)
        loop = Loop(model, optimizer, recipe, steps)
        was_training = model.training
        for _ in range(epochs):
            loop.epoch(kept)
        model.train(was_training)

    return fit
