"""Sums per channel of what lies along dimensions of tensors, wherever these are: one transfer, and always one order.

Sums on a GPU come out in another order each time. Here they are made on the CPU, so that two processes of one training,
or one that is resumed, have the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from effp_fx.groups import Channels
from effp_fx.importance import Floats


def channel_sums(rows: Sequence[tuple[Channels, Tensor]], channels: int) -> Floats:
    """What all rows have for each channel, added up.

    Args:
        rows: for each entry of a vector the number of its channel, -1 for none, and the vector.
        channels: how many there are (K).
    """
    if not rows:
        return np.zeros(channels)
    device = rows[0][1].device
    values = torch.cat([row.to(device) for _, row in rows]).cpu().numpy()
    numbers = np.concatenate([numbers for numbers, _ in rows])
    own = numbers >= 0
    found: Floats = np.bincount(numbers[own], values[own], channels)
    return found


def wide(value: Tensor) -> torch.dtype:
    """What to add a tensor up in: float32 at least."""
    return torch.promote_types(value.dtype, torch.float32)


def others(value: Tensor, dim: int) -> list[int]:
    """All dimensions but one."""
    return [other for other in range(value.dim()) if other != dim]
