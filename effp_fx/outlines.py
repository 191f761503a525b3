"""Tensors that have a shape and no values, for runs that ask which ops follow each other and what shapes they return.

An outline is a tensor of the right shape in memory that is zero and that many of them share: it takes no time to make.
Outlines come out of the products (`conv2d`, `linear`), nearly all of a run's time, and pass through the ops that follow
those: what these would return is an outline again. What shape that has is in `ops/shapes.py`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effp_fx.op_mode import op_tensors, op_text
from effp_fx.ops.context import named_arguments
from effp_fx.ops.shapes import FOLLOWING, JOINING, PRODUCTS

_SMALL = 100_000
"""Multiply-accumulates below which a product is as soon computed as its shape."""


class Values(enum.Enum):
    """Which values of a run are computed."""

    ALL = "all"
    UNTIL_READ = "none as long as nothing depends on them; else the run ends with `ValuesNeeded`"
    NONE = "none: what depends on them is another thing than it would be"


class ValuesNeeded(Exception):
    """Values that were not computed decide what comes next."""


class Outlines:
    """The outlines of one run: views of memory that is zero, which nothing writes to. Not thread-safe."""

    def __init__(self) -> None:
        self._memory: dict[torch.device, Tensor] = {}
        self._outgrown: list[Tensor] = []
        self._storages: set[int] = set()

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def made(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """An outline of this shape, of the dtype and on the device of a tensor."""
        count = math.prod(shape)
        memory = self._memory.get(like.device)
        if memory is None or memory.numel() < count * like.itemsize:
            memory = self._grown(memory, count * like.itemsize, like.device)
        return memory[: count * like.itemsize].view(like.dtype).view(tuple(shape))

    def result(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """The outline of what an op returns; None: it has to be computed, because it has no outlines among its
        arguments, has no shape rule, or one that does not cover these arguments."""
        packet, first, tensors = op_text(func).removeprefix("aten.").partition(".")[0], args[0], op_tensors(args)
        known = any(tensor in self for tensor in tensors)
        if torch.Tag.inplace_view in func.tags or not (known or packet in PRODUCTS):
            return None
        own = isinstance(first, Tensor) and first in self
        if func._schema.is_mutable:  # what is written to an outline would be seen nowhere
            return first if own and packet.endswith("_") else None
        rule = PRODUCTS.get(packet) or JOINING.get(packet) or (FOLLOWING.get(packet) if own else None)
        # Of tensors that lie in the order of their dimensions it is known how the result lies.
        ordered = packet in ("contiguous", "linear") or all(tensor.is_contiguous() for tensor in tensors)
        if rule is None or not ordered or len({tensor.device for tensor in tensors}) > 1:
            return None
        shape = rule(named_arguments(func, args, kwargs))
        if shape is None or not (known or _is_large(shape, tensors[1])):
            return None
        return self.made(shape, tensors[0])

    def _grown(self, memory: Tensor | None, size: int, device: torch.device) -> Tensor:
        if memory is not None:
            self._outgrown.append(memory)  # views of it live on: no other memory may have its address
            size = max(size, 2 * memory.numel())
        size = -(-size // 16) * 16
        # numpy leaves it to the system to fill pages with zeros, when they are read: most never are.
        zeros = torch.from_numpy(np.zeros(size, dtype=np.uint8)).to(device)
        self._memory[device] = zeros
        self._storages.add(zeros.untyped_storage()._cdata)
        return zeros


def _is_large(shape: Sequence[int], weight: Tensor) -> bool:
    """Whether a product takes longer than its outline."""
    return math.prod(shape) * weight.numel() > _SMALL * weight.shape[0]
