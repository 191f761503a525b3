"""Union-find over integer channel ids, and which of them are frozen and why; knows no graph and no network.

Every index of every dimension of every weight is one id. Ids that must be removed together are united, and the classes
that are left are the channels. Id 0 stands for "no channel". Unions are collected as arrays and worked off together, so
that the time grows with their number and not with the number of calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
_MANY = 2000
"""Ids from which on a table of all is faster than looking for repeated ones."""


@dataclass(frozen=True)
class Reason:
    """Why a channel has to stay."""

    text: str
    op: str = ""
    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.op, self.module, self.source) if part)
        return f"{self.text} [{place}]" if place else self.text


@dataclass(frozen=True)
class Owner:
    """The ids `start .. stop - 1` are the indices of one dimension of one weight."""

    tensor: str
    dim: int
    start: int
    stop: int


class ChannelIds:
    """The ids of one model. Not thread-safe."""

    def __init__(self) -> None:
        self.owners: list[Owner] = []
        self._count = 1
        self._parent: Ids = np.arange(1, dtype=np.int64)
        self._left: list[npt.NDArray[np.integer]] = []
        self._right: list[npt.NDArray[np.integer]] = []
        self._frozen: list[tuple[Ids, Reason]] = []
        self._mask: npt.NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._mask_of = (0, 0)
        self._mask_roots: Ids | None = None
        self._starts: Ids = np.zeros(0, dtype=np.int64)
        self._weights: npt.NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)

    def __len__(self) -> int:
        return self._count

    def new(self, tensor: str, dim: int, size: int) -> Owner:
        """Fresh ids for one dimension of a weight."""
        owner = Owner(tensor, dim, self._count, self._count + size)
        self._count += size
        self.owners.append(owner)
        return owner

    def named(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """For each id whether it is an index of a weight; the others were made for tensors of a written size."""
        if len(self._starts) != len(self.owners):
            self._starts = np.array([owner.start for owner in self.owners], dtype=np.int64)
            self._weights = np.array([bool(owner.tensor) for owner in self.owners], dtype=np.bool_)
        position = np.searchsorted(self._starts, ids, side="right") - 1
        return (ids > 0) & self._weights[position]

    def unite(self, left: npt.NDArray[np.integer], right: npt.NDArray[np.integer]) -> None:
        """`left[i]` and `right[i]` stand or fall together, for all i."""
        if len(left) != len(right):
            raise ValueError(f"{len(left)} ids cannot be united with {len(right)}")
        if len(left):
            self._left.append(left)
            self._right.append(right)

    def freeze(self, ids: Ids, reason: Reason) -> None:
        """These ids stay, for this reason; the first reason given for a channel is the one that is kept."""
        if len(ids) < _MANY:
            ids = np.unique(ids)
        else:
            met = np.zeros(self._count, dtype=np.bool_)
            met[ids] = True
            ids = np.flatnonzero(met)
        ids = ids[ids > 0]
        if len(ids):
            self._frozen.append((ids, reason))

    def roots(self) -> Ids:
        """For each id the smallest id of its class. `roots()[0] == 0`."""
        if self._count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), self._count, dtype=np.int64)])
        if not self._left:
            return self._parent
        left, right = np.concatenate(self._left), np.concatenate(self._right)
        self._left, self._right = [], []
        parent = self._parent.copy()
        while True:
            root_left, root_right = parent[left], parent[right]
            open_edges = root_left != root_right
            if not open_edges.any():
                break
            left, right = root_left[open_edges], root_right[open_edges]
            np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))
            while True:
                jumped = parent[parent]
                if np.array_equal(jumped, parent):
                    break
                parent = jumped
        self._parent = parent
        return parent

    def frozen_roots(self) -> dict[int, Reason]:
        """The root of each frozen class, with the first reason that was given."""
        roots = self.roots()
        reasons: dict[int, Reason] = {}
        for ids, reason in self._frozen:
            for root in np.unique(roots[ids]).tolist():
                reasons.setdefault(root, reason)
        return reasons

    def frozen_mask(self) -> npt.NDArray[np.bool_]:
        """For each id whether its class is frozen; not to be written to. Id 0 counts as frozen: it never goes."""
        roots, known = self.roots(), (self._count, len(self._frozen))
        if self._mask_of != known or self._mask_roots is not roots:
            mask = np.zeros(self._count, dtype=np.bool_)
            mask[0] = True
            for ids, _ in self._frozen:
                mask[roots[ids]] = True
            self._mask, self._mask_of, self._mask_roots = mask[roots], known, roots
        return self._mask
