"""Shadows: for each element of a tensor the channel it vanishes with.

A shadow has the shape of its tensor and one or more *facets*. A facet is an int32 tensor of that shape, as a rule an
expanded view of a few numbers. An element is 0 where it belongs to no channel, `+id` where it is exactly zero while the
channel is masked, `-id` where it goes with the channel but holds some other value while the channel is masked. A weight
of shape (out, in) has two facets, one that varies along each dimension: its elements go with either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shadow:
    """The facets of one tensor. No facets: nothing in it belongs to a channel."""

    shape: tuple[int, ...]
    facets: tuple[Tensor, ...] = ()
    from_input: bool = True
    """Whether the tensor depends on the model's inputs (else on its weights alone)."""


def varying(facet: Tensor) -> tuple[int, ...]:
    """The dimensions along which the facet changes."""
    return tuple(
        [dim for dim, (size, step) in enumerate(zip(facet.shape, facet.stride(), strict=True)) if size > 1 and step]
    )


def crop(facet: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """The facet with every dimension that does not vary (or is not in `dims`) cut to size 1."""
    shape, stride = facet.shape, facet.stride()
    # An expanded dimension of size 0 (no box was found) still has its value; one of real size 0 has none.
    if dims is None:
        sizes = [size if step else 1 for size, step in zip(shape, stride, strict=True)]
    else:
        sizes = [
            size if dim in dims or (size == 0 and step) else 1
            for dim, (size, step) in enumerate(zip(shape, stride, strict=True))
        ]
    return facet if sizes == list(shape) else facet.as_strided(sizes, stride, facet.storage_offset())


def compress(facet: Tensor) -> Tensor:
    """The same facet with dimensions that turn out not to vary made expanded views again."""
    small = crop(facet)
    for dim in varying(small):
        first = small.narrow(dim, 0, 1)
        if bool((small == first).all()):
            small = first
    return small.expand(facet.shape)


def identity(facet: Tensor) -> tuple[object, ...]:
    """Equal for facets that are the same view of the same memory."""
    return facet.data_ptr(), facet.shape, facet.stride()


def spread(vector: Tensor, dim: int, shape: tuple[int, ...]) -> Tensor:
    """A facet of `shape` that holds `vector` along `dim`."""
    view = [1] * len(shape)
    view[dim] = vector.numel()
    return vector.reshape(view).expand(shape)


def straight(facet: Tensor, dim: int) -> Tensor:
    """The ids of a facet that varies along `dim` alone."""
    return facet.as_strided(facet.shape[dim : dim + 1], facet.stride()[dim : dim + 1], facet.storage_offset())


def is_empty(facet: Tensor) -> bool:
    """Whether no element belongs to a channel."""
    return not bool(crop(facet).any())


def flat(facet: Tensor) -> Array:
    """The ids in a facet, unsigned, without repeating dimensions that do not vary."""
    ids: Array = np.abs(crop(facet).numpy().reshape(-1)).astype(np.int64)
    return ids


def moved(facet: Tensor, op: Callable[[Tensor], Tensor]) -> Tensor:
    """What a movement op makes of the facet."""
    return compress(op(facet))


def broadcast(facet: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The facet of an operand as seen from an elementwise result of `shape`."""
    return facet.expand(shape)


def map_ids(facet: Tensor, table: Tensor) -> Tensor:
    """The facet with each id replaced by `table[id]`, signs kept."""
    small = crop(facet)
    return (table[small.abs().long()] * small.sign()).to(torch.int32).expand(facet.shape)


def absolute(facet: Tensor) -> Tensor:
    """The facet without signs."""
    return crop(facet).abs().expand(facet.shape)


def leaky(facet: Tensor) -> Tensor:
    """The facet marked as not zero while masked."""
    return crop(facet).abs().neg().expand(facet.shape)
