"""What one update of a session did: a record for logs, tables and plots; plain numbers, so that it goes into JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from effp_fx.groups import Analysis, Keep


@dataclass(frozen=True)
class Update:
    """One choice of the mask."""

    step: int
    """Optimizer steps taken when it was made."""
    flops: float
    """Of the masked network, as a part of the dense one's."""
    params: float
    """Likewise."""
    kept: dict[str, int]
    """Channels left of each group."""
    pruned: int
    """Channels that this update took off."""
    regrown: int
    """Channels that were off before it and are not now."""
    given_back: float
    """The part of the channels beyond the target that the schedule gave back."""
    pruning_loss: float
    """L_prune at that moment, before alpha."""
    alpha: float
    """Its weight in the last step."""
    final: bool
    """Whether the mask is fixed from here on."""

    def to_dict(self) -> dict[str, Any]:
        """The record as numbers, strings and one dict."""
        return asdict(self)


def kept_by_group(analysis: Analysis, keep: Keep) -> dict[str, int]:
    """Channels left of each group, by its name."""
    return {group.name: int(np.count_nonzero(keep[group.start : group.stop])) for group in analysis.groups}
