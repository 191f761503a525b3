"""Ranks a session's channels at its updates, those that are held fairly beside those that have gone on training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from effp_fx import importance as importances
from effp_fx.groups import Analysis, Keep
from effp_fx.importance import Floats
from effp_fx.session.sensitivity import Sensitivity

_TINY = 1e-300


class Ranking:
    """Scores over time: what is held counts as much of its group's mean as it did when it was last alive.

    Weight decay and the pruning loss shrink what is alive, while what is held stays as it was; compared as they are,
    held channels would win at every update, and lose again at the next. Ours: the paper does not say how the filters
    to restore are chosen.

    Args:
        analysis: the channel groups.
        network: whose channels they are.
        tensors: its parameters and buffers by name.
        importance: `taylor`, `gamma`, or what `importance.score` takes.
        magnitudes: () -> what theta looks at (K), for `gamma`.

    Raises NameNotFoundError, EffpError for an importance that is not known: at once, not at the first update.
    """

    def __init__(
        self,
        analysis: Analysis,
        network: nn.Module,
        tensors: Mapping[str, Tensor],
        importance: Any,
        magnitudes: Callable[[], Floats],
    ) -> None:
        self._analysis, self._network, self._importance = analysis, network, importance
        self._magnitudes = magnitudes
        self._sensitivity = Sensitivity(analysis, tensors) if importance == "taylor" else None
        if self._sensitivity is None and not callable(importance):
            importances.score(analysis, network, importance)
        self._groups: NDArray[np.int64] = np.zeros(analysis.channels, dtype=np.int64)
        for index, group in enumerate(analysis.groups):
            self._groups[group.start : group.stop] = index
        self._means: Floats = np.ones(analysis.channels)
        """For each channel (K) the mean score of the alive channels of its group, when it was last alive itself."""

    def observe(self, alive: Keep, scale: Tensor | None) -> None:
        """Look at the gradients of a step, before anything is added to them; `scale` as a GradScaler has it."""
        if self._sensitivity is not None:
            self._sensitivity.observe(alive, scale)

    def scores(self, alive: Keep) -> Floats:
        """The scores (K) now, those of held channels scaled to what their group has become since."""
        scores = self._raw()
        count = np.bincount(self._groups, alive)
        total = np.bincount(self._groups, np.where(alive, scores, 0.0))
        now = (total / np.maximum(count, 1))[self._groups]
        self._means = np.where(alive, now, self._means)
        return np.where(alive, scores, scores * now / np.maximum(self._means, _TINY))

    def worth(self, alive: Keep) -> Floats | None:
        """What each group as a whole is worth beside the others (G): decision 14.

        The sum of the squared slopes of what is alive: how much the loss would miss the group, to first order
        (Molchanov et al. 2019, who rank the channels of all layers by these squares). None where the importance
        compares channels of one group only.
        """
        if self._sensitivity is None:
            return None
        squares = np.where(alive, self._sensitivity.squares, 0.0)
        return np.bincount(self._groups, squares, len(self._analysis.groups)).astype(np.float64)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies, on the CPU."""
        state = {"means": torch.from_numpy(self._means.copy())}
        if self._sensitivity is not None:
            state["squares"] = torch.from_numpy(self._sensitivity.squares.copy())
        return state

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take a state over."""
        self._means = saved["means"].cpu().numpy().copy()
        if self._sensitivity is not None:
            self._sensitivity.squares = saved["squares"].cpu().numpy().copy()

    def _raw(self) -> Floats:
        if self._sensitivity is not None:
            return self._sensitivity.scores()
        if self._importance == "gamma":
            return self._magnitudes()
        return importances.score(self._analysis, self._network, self._importance)
