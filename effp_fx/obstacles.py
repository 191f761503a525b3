"""Why a target cannot be reached: the smallest cost there is, and what stands in the way of less, the costliest
first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from effp_fx.cost import Cost
from effp_fx.errors import UnreachableTargetError
from effp_fx.groups import Analysis, Frozen, Keep, kept_flags
from effp_fx.ladder import Ladder

# As many reasons as a user reads.
SHOWN = 5


def unreachable(analysis: Analysis, cost: Cost, target: float, name: str, ladder: Ladder) -> UnreachableTargetError:
    """The error for a target below what is left when every group is at its least."""
    smallest = cost(ladder.keep(np.zeros_like(ladder.rungs)))
    found = obstacles(analysis, cost, ladder)
    lines = [f"{_percent(share)}  {reason}" for reason, share in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"and {len(found) - SHOWN} smaller ones")
    asked, least = _percent(target / cost.dense), _percent(smallest / cost.dense)
    return UnreachableTargetError(
        f"{name} cannot be brought down to {target:,.0f} ({asked} of the dense {cost.dense:,.0f})",
        seen=f"the smallest reachable is {smallest:,.0f} ({least}); {_listed(lines)}",
        mend=f"ask for {_rounded_up(smallest / cost.dense)} or more, or free what is frozen, bounded or rounded",
    )


def _listed(lines: list[str]) -> str:
    if not lines:
        return "every group is down to its smallest size already"
    return "\n    ".join(["in the way of less, by their part of the dense cost:", *lines])


def obstacles(analysis: Analysis, cost: Cost, ladder: Ladder) -> list[tuple[str, float]]:
    """Reasons with the part of the dense cost that each holds in the smallest network, largest first.

    A frozen dimension holds its layer's cost, times its share of the channels left in that dimension. A layer that is
    frozen on both sides is counted with both reasons, so the parts may add up to more than the whole.
    """
    bottom = ladder.keep(np.zeros_like(ladder.rungs))
    layers = cost.per_layer(bottom)
    held: defaultdict[str, float] = defaultdict(float)
    counted: set[tuple[str, str, int]] = set()
    for frozen in analysis.frozen:
        reason = _text(frozen)
        if (reason, frozen.tensor, frozen.dim) not in counted:
            counted.add((reason, frozen.tensor, frozen.dim))
            held[reason] += _held(analysis, frozen, layers, bottom)
    for reason, part in _minima(analysis, cost, ladder):
        held[reason] += part
    ranked = sorted(held.items(), key=lambda item: (-item[1], item[0]))
    return [(reason, part / cost.dense) for reason, part in ranked if part > 0]


def _held(analysis: Analysis, frozen: Frozen, layers: dict[str, float], bottom: Keep) -> float:
    total = _cost_of_layer(frozen.tensor, layers) or layers.get(frozen.module, 0.0)
    tensor = analysis.tensors.get(frozen.tensor)
    if tensor is None or not 0 <= frozen.dim < len(tensor.shape):
        return total
    numbers = tensor.dims.get(frozen.dim)
    if numbers is None:
        return total
    left = int(np.count_nonzero(kept_flags(numbers, bottom)))
    return total * min(frozen.channels / left, 1.0) if left else 0.0


def _cost_of_layer(tensor: str, layers: dict[str, float]) -> float:
    """Of the nearest module around a tensor that costs something: a parametrised weight lies deeper than its layer."""
    path = tensor.rpartition(".")[0]
    while path not in layers and path:
        path = path.rpartition(".")[0]
    return layers.get(path, 0.0)


def _text(frozen: Frozen) -> str:
    places = [f"at {frozen.op}" if frozen.op else "", f"in {frozen.module}" if frozen.module else "", frozen.source]
    where = ", ".join(place for place in places if place)
    return f"{frozen.reason} ({where})" if where else frozen.reason


def _minima(analysis: Analysis, cost: Cost, ladder: Ladder) -> Iterator[tuple[str, float]]:
    """Groups that must keep more than one channel, with what those beyond the first hold."""
    saved = cost.marginal(ladder.keep(np.zeros_like(ladder.rungs)))
    for number, group in enumerate(analysis.groups):
        least = int(ladder.least[number])
        if least > 1:
            part = float(saved[group.start : group.stop].mean()) * (least - 1)
            yield (
                f"group {group.name} keeps at least {least} of {group.stop - group.start} (smallest kept or rounding)",
                part,
            )


def _rounded_up(part: float) -> float:
    return float(np.ceil(part * 1000) / 1000)


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"
