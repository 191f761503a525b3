"""What a network costs as an exact function of the channels that are kept: FLOPs, parameters, activation bytes.

A cost is a sum of terms, each a constant times a product of counts: a convolution costs 2 * kernel * output positions
* (input channels kept) * (output channels kept). This is equations (1) and (2) of the EFFP paper (Ko, Kang, Kim 2024)
with whole numbers in place of kept fractions, so that nothing is approximated: biases and norms, which scale with one
count alone, are terms of one factor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from effp_fx.errors import NameNotFoundError, RegistrationError
from effp_fx.groups import Analysis, Term

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Cost:
    """A sum of products of counts, over channels numbered 0 .. channels-1.

    The terms are held as arrays, so that a call costs one pass over them and no Python loop:

    - `constants` (T) and `slots` (T, S): term t is constants[t] times the counts of the factors slots[t]; short rows
      are padded with
      the last factor, whose count is always 1;
    - `base` (U + 1): entries of each distinct factor that are never removed;
    - `entry_factor`, `entry_channel`, `entry_weight` (E): how many entries of the factor the channel stands for.
    """

    def __init__(self, terms: Sequence[Term], channels: int) -> None:
        distinct, rows = _distinct_factors(terms)
        width = max((len(row) for row in rows), default=0)
        one = len(distinct)
        self.channels = channels
        self.constants: Floats = np.array([term.constant for term in terms], dtype=np.float64)
        padded = [row + [one] * (width - len(row)) for row in rows]
        self.slots: Ints = np.array(padded, dtype=np.int64).reshape(len(rows), width)
        self._columns: list[Ints] = [np.ascontiguousarray(column) for column in self.slots.T]
        self.base: Floats = np.array([np.count_nonzero(factor < 0) for factor in distinct] + [1], dtype=np.float64)
        self.entry_factor, self.entry_channel, self.entry_weight = _entries(distinct, channels)
        self.layers: tuple[str, ...] = tuple(dict.fromkeys(term.layer for term in terms))
        place = {layer: i for i, layer in enumerate(self.layers)}
        self._layer_of_term: Ints = np.array([place[term.layer] for term in terms], dtype=np.int64)
        self._on_device: dict[torch.device, tuple[torch.Tensor, ...]] = {}
        self.dense: float = self(np.ones(channels))

    @overload
    def __call__(self, keep: NDArray[Any]) -> float: ...

    @overload
    def __call__(self, keep: torch.Tensor) -> torch.Tensor: ...

    def __call__(self, keep: NDArray[Any] | torch.Tensor) -> float | torch.Tensor:
        """The cost when `keep` (K; bool, or a float in [0, 1] per channel) is kept.

        An array gives a float, a tensor gives a float64 scalar on its device that is differentiable in it.
        Whole-numbered costs up to 2**53 are exact.
        """
        _check_length(keep, self.channels)
        if isinstance(keep, torch.Tensor):
            return self._of_tensor(keep)
        return float(self.term_costs(self.counts(keep)).sum())

    def counts(self, keep: NDArray[Any]) -> Floats:
        """What is left of every distinct factor (U + 1), the constant 1 last."""
        kept = self.entry_weight * np.asarray(keep, dtype=np.float64)[self.entry_channel]
        return self.base + np.bincount(self.entry_factor, kept, len(self.base))

    def term_costs(self, counts: Floats) -> Floats:
        """The cost of every term (T), from the counts of the factors (U + 1)."""
        costs = self.constants
        # Column by column: numpy's product over a short last axis takes three times as long.
        for column in self._columns:
            costs = costs * counts[column]
        return costs

    def slopes(self, counts: Floats) -> Floats:
        """d cost / d count of every distinct factor (U + 1), from the counts (U + 1)."""
        slopes = np.zeros_like(counts)
        for slot, column in enumerate(self._columns):
            # Leave one out by multiplying the others: dividing the product would fail where a count is 0.
            others = self.constants
            for other in self._columns[:slot] + self._columns[slot + 1 :]:
                others = others * counts[other]
            slopes += np.bincount(column, others, len(counts))
        return slopes

    def marginal(self, keep: NDArray[Any]) -> Floats:
        """d cost / d keep of every channel (K), exactly.

        It is what removing that channel alone saves, except where a channel is in two factors of one term (a layer
        that feeds itself): there the product is quadratic, and the saving is smaller by the square.
        """
        _check_length(keep, self.channels)
        slopes = self.slopes(self.counts(keep))
        saved = self.entry_weight * slopes[self.entry_factor]
        return np.bincount(self.entry_channel, saved, self.channels).astype(np.float64)

    def per_layer(self, keep: NDArray[Any]) -> dict[str, float]:
        """The cost of each layer, by module path, in the order of the terms; it adds up to the whole."""
        _check_length(keep, self.channels)
        sums = np.bincount(self._layer_of_term, self.term_costs(self.counts(keep)), len(self.layers))
        return dict(zip(self.layers, sums.tolist(), strict=True))

    def _of_tensor(self, keep: torch.Tensor) -> torch.Tensor:
        if keep.device not in self._on_device:
            arrays = (self.constants, self.slots, self.base, self.entry_factor, self.entry_channel, self.entry_weight)
            self._on_device[keep.device] = tuple(torch.as_tensor(array, device=keep.device) for array in arrays)
        constants, slots, base, factor, channel, weight = self._on_device[keep.device]
        counts = base.index_add(0, factor, weight * keep.to(torch.float64)[channel])
        return (constants * counts[slots].prod(dim=1)).sum()


def _check_length(keep: NDArray[Any] | torch.Tensor, channels: int) -> None:
    if keep.shape != (channels,):
        raise ValueError(f"keep must have one entry per channel, shape ({channels},), not {tuple(keep.shape)}")


def _distinct_factors(terms: Sequence[Term]) -> tuple[list[NDArray[Any]], list[list[int]]]:
    """The factors without repeats, and for each term the places of its own among them."""
    distinct: list[NDArray[Any]] = []
    by_content: dict[bytes, int] = {}
    by_identity: dict[int, int] = {}
    rows: list[list[int]] = []
    for term in terms:
        row = []
        for factor in term.factors:
            if id(factor) not in by_identity:
                content = hashlib.blake2b(
                    np.ascontiguousarray(factor, dtype=np.int64).tobytes(), digest_size=16
                ).digest()
                by_identity[id(factor)] = by_content.setdefault(content, len(distinct))
                if by_content[content] == len(distinct):
                    distinct.append(np.asarray(factor))
            row.append(by_identity[id(factor)])
        rows.append(row)
    return distinct, rows


def _entries(distinct: list[NDArray[Any]], channels: int) -> tuple[Ints, Ints, Floats]:
    if not distinct or not channels:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    factor = np.repeat(np.arange(len(distinct)), [factor.size for factor in distinct])
    channel = np.concatenate([factor.ravel() for factor in distinct]).astype(np.int64)
    prunable = channel >= 0
    key, weight = np.unique(factor[prunable] * channels + channel[prunable], return_counts=True)
    return key // channels, key % channels, weight.astype(np.float64)


def flops(analysis: Analysis) -> Cost:
    """FLOPs of one forward pass on the example inputs: 2 per multiply-accumulate, as in torch's flop counter."""
    return Cost(analysis.flop_terms, analysis.channels)


def params(analysis: Analysis) -> Cost:
    """Number of elements of all parameters, each counted once; buffers are not parameters."""
    terms = []
    for name, tensor in analysis.tensors.items():
        if not tensor.is_parameter:
            continue
        fixed = np.prod([size for dim, size in enumerate(tensor.shape) if dim not in tensor.dims], dtype=np.float64)
        factors = tuple(tensor.dims[dim] for dim in sorted(tensor.dims))
        terms.append(Term(constant=float(fixed), factors=factors, layer=name.rpartition(".")[0], node=name))
    return Cost(terms, analysis.channels)


def activation_bytes(analysis: Analysis) -> Cost:
    """Bytes of the tensors that the forward pass writes, on the example inputs and in the dtypes it ran in."""
    return Cost(analysis.activation_terms, analysis.channels)


def latency(seconds: Mapping[str, float]) -> Callable[[Analysis], Cost]:
    """A cost in seconds, from the time that each layer of the dense network takes, by its module path.

    A layer's time is taken to fall in proportion to its FLOPs, or where it has none to the bytes that it writes: ours,
    and an approximation, for real kernels are fast at some channel counts and slow at others (`round_to`). What it
    gets right is that a FLOP of one layer costs more than one of another. What is not in the table costs nothing.

        register_cost("latency", latency(layer_seconds(model, example)))
    """

    def build(analysis: Analysis) -> Cost:
        flop_terms, byte_terms = _by_layer(analysis.flop_terms), _by_layer(analysis.activation_terms)
        terms = []
        for layer, time in seconds.items():
            own = flop_terms.get(layer) or byte_terms.get(layer) or []
            whole = sum(_dense(term) for term in own)
            terms += [replace(term, constant=term.constant * time / whole) for term in own if whole]
        return Cost(terms, analysis.channels)

    return build


def _by_layer(terms: Iterable[Term]) -> dict[str, list[Term]]:
    found: dict[str, list[Term]] = {}
    for term in terms:
        found.setdefault(term.layer, []).append(term)
    return found


def _dense(term: Term) -> float:
    return term.constant * math.prod(len(factor) for factor in term.factors)


COSTS: dict[str, Callable[[Analysis], Cost]] = {
    "flops": flops,
    "params": params,
    "activation_bytes": activation_bytes,
    "memory": activation_bytes,
}


def register_cost(name: str, builder: Callable[[Analysis], Cost]) -> None:
    """Make a further cost available by name; raises RegistrationError where the name is taken."""
    if name in COSTS:
        raise RegistrationError(f"a cost named {name!r} exists already", mend="choose another name")
    COSTS[name] = builder


def build_cost(name: str, analysis: Analysis) -> Cost:
    """The cost of that name for this network; raises NameNotFoundError."""
    if name not in COSTS:
        raise NameNotFoundError(f"no cost is named {name!r}", expected=", ".join(sorted(COSTS)))
    return COSTS[name](analysis)
