"""The options of a session that are not about its schedule, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from effp_fx.errors import SessionError
from effp_fx.models.spec import nearest
from effp_fx.session.selection import check_regrow


@dataclass(frozen=True)
class Options:
    """How the pruning loss presses, and by what channels are ranked."""

    alpha: float | None = None
    """Weight of the pruning loss in equation (4). None (ours): at each step the weight at which the pruning loss alone
    would take `drift` of their size from the gammas by the freeze, so that the scale of the loss, the optimizer, the
    learning rate and the number of steps do not matter."""
    drift: float = 0.05
    """A part of the gammas' mean size (ours); 0 adds no pruning loss. Without gammas it is that of the filters."""
    threshold: float = 0.01
    """Of theta: a part of the mean magnitude that the group had at the start (ours; the paper has an absolute t)."""
    importance: str | Callable[..., Any] | Any = "taylor"
    """By what channels are ranked (ours): `taylor` by how much the loss would miss them, see `Sensitivity`, which also
    tells groups apart (decision 14); `gamma` by the magnitude that theta looks at, or as in `prune`: these compare
    channels of one group, and groups by what they cost."""
    regrow_by: str = "importance"
    """Which of the pruned channels come back: `importance` or `random`."""
    shrink: float = 36.0
    """Of a penalty on the norm of each channel until the mask is fixed, see `Shrinking` (ours; not in the paper): the
    lengths of its gradients, added up over the steps, in lengths of the network's. A longer training is pressed more
    gently at each step, not more in all, a short one by at most a tenth of the network's. 0 leaves it out."""
    seed: int = 0

    @classmethod
    def read(cls, given: Mapping[str, Any], *, of: str, beside: Collection[str]) -> Options:
        """The options among what was given.

        Args:
            given: name -> value, as a caller wrote them.
            of: who takes them, for the message.
            beside: what else it takes by name.

        Raises SessionError for a name that is neither an option nor one of those.
        """
        own = {field.name for field in fields(cls)}
        known = own | set(beside)
        for name in given:
            if name not in known:
                raise SessionError(
                    f"{of} does not take {name}", expected=", ".join(sorted(known)), mend=nearest(name, known)
                )
        return cls(**{name: value for name, value in given.items() if name in own})

    def __post_init__(self) -> None:
        for name in ("alpha", "drift", "threshold", "shrink"):
            value = getattr(self, name)
            if value is None and name == "alpha":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise SessionError(f"{name} must be a finite number, 0 or more", seen=repr(value))
        if self.threshold == 0:
            raise SessionError("threshold must be above 0", seen="0", expected="a small part of a group's mean: 0.01")
        check_regrow(self.regrow_by)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise SessionError("seed must be a whole number, 0 or more", seen=repr(self.seed))
