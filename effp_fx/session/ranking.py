"""Makes the scores of channels that are held comparable with those of channels that have gone on training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from effp_fx.groups import Analysis, Keep
from effp_fx.importance import Floats

_TINY = 1e-300


class Ranking:
    """Scores over time: what is held counts as much of its group's mean as it did when it was last alive.

    Weight decay and the pruning loss shrink what is alive, while what is held stays as it was; compared as they are,
    held channels would win at every update, and lose again at the next. Ours: the paper does not say how the filters
    to restore are chosen.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._groups: NDArray[np.int64] = np.zeros(analysis.channels, dtype=np.int64)
        for index, group in enumerate(analysis.groups):
            self._groups[group.start : group.stop] = index
        self.means: Floats = np.ones(analysis.channels)
        """For each channel (K) the mean score of the alive channels of its group, when it was last alive itself."""

    def fair(self, scores: Floats, alive: Keep) -> Floats:
        """The scores (K), those of held channels scaled to what their group has become since."""
        count = np.bincount(self._groups, alive)
        total = np.bincount(self._groups, np.where(alive, scores, 0.0))
        now = (total / np.maximum(count, 1))[self._groups]
        self.means = np.where(alive, now, self.means)
        return np.where(alive, scores, scores * now / np.maximum(self.means, _TINY))
