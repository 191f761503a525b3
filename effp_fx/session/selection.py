"""Which channels an update takes off and which it gives back: pure functions of scores, costs, targets and schedule."""

from __future__ import annotations

import numpy as np

from effp_fx import lowering
from effp_fx.errors import SessionError
from effp_fx.groups import Analysis, Keep
from effp_fx.importance import Floats, over_group_mean

REGROW = ("importance", "random")
_HELD = 1e-6
"""What is held counts so little that it is chosen only where too little is alive to choose from."""


def check_regrow(by: str) -> None:
    """Raise SessionError for a way of regrowing that is not known."""
    if by not in REGROW:
        raise SessionError("regrow_by is not known", seen=repr(by), expected=" or ".join(REGROW))


def select(
    analysis: Analysis,
    targets: lowering.Targets,
    scores: Floats,
    alive: Keep,
    share: float,
    by: str,
    seed: int,
    worth: Floats | None = None,
) -> Keep:
    """The mask after an update (K).

    Stage 2 of EFFP prunes to the target, and only what is alive competes there, so that the last mask has no channel
    that was not trained up to then. Stage 3 gives back floor(share * pruned) of all that is off. How
    the target's mask is found, and which channels come back, is ours: `importance` those with the highest score over
    the mean of their group, `random` any, drawn in proportion to it.

    Args:
        analysis: the channel groups.
        targets: what the final mask has to meet.
        scores: (K), higher is better, finite; of what is held as `Ranking` makes them comparable.
        alive: (K) True where a channel was on until now.
        share: the part that is given back, from the schedule.
        by: `importance` or `random`.
        seed: of the draw; the same on every rank.
        worth: (G) what each group as a whole is worth, from `Ranking`; None: what it costs.
    """
    # The rehearsal has shown that the targets go together; a training that runs is not stopped for it.
    keep = lowering.choose(analysis, targets, np.where(alive, scores, scores * _HELD), closely=False, worth=worth)
    off = np.flatnonzero(~keep)
    count = int(share * len(off))
    if not count:
        return keep
    worth = over_group_mean(analysis, scores)[off]
    if by == "importance":
        back = off[np.argsort(-worth, kind="stable")[:count]]
    else:
        chances = np.maximum(worth, 1e-12)
        back = np.random.default_rng(seed).choice(off, count, replace=False, p=chances / chances.sum())
    keep[back] = True
    return keep
