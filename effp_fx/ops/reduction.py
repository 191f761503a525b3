"""Reductions: channels pass where the reduced dimension does not carry them; a sum of zeros is no loss."""

from __future__ import annotations

from typing import Any

from torch import fx

from effp_fx.ops.context import Call, Context, Facets, signed
from effp_fx.ops.elementwise import extremum
from effp_fx.ops.shadow import leaky, varying
from effp_fx.ops.table import add


def _dims(call: Call, rank: int) -> tuple[set[int], bool]:
    value = call.first("dim", "dims")
    keep = bool(call.first("keepdim"))
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return set(range(rank)), keep
    dims = value if isinstance(value, (list, tuple)) else [value]
    return {dim % max(rank, 1) for dim in dims}, keep


def _reduce(context: Context, call: Call, sign: int, sums: bool) -> Facets:
    source = call.shadow(call.first("self", "input"))
    order = call.first("ord", "p")
    sums = sums and (order is None or float(order) > 0)  # of a norm of order -inf, zeros are the result
    over, keep = _dims(call, len(source.shape))
    passing = []
    for facet in source.facets:
        along = varying(facet)
        met = [dim for dim in along if dim in over]
        if len(met) < len(along) or not met:
            # Channels that also lie along a dimension that is left meet in it: the branches of a stack that is summed.
            small = context.collapse(call, facet, met) if met else facet
            for dim in sorted(over, reverse=True):
                small = small.narrow(dim, 0, 1) if keep else small.select(dim, 0)
            passing.append(signed(small, sign).expand(call.out.shape))
        elif sums and source.from_input:
            context.freeze(call, facet[facet < 0], "not zero while masked, and is summed up with other channels")
        else:
            context.freeze(call, facet, "is reduced together with other channels")
    return passing


def _rule(sign: int, sums: bool, several: bool = False) -> Any:
    def rule(context: Context, call: Call) -> Any:
        facets = _reduce(context, call, sign, sums)
        return [facets, [leaky(facet) for facet in facets]] if several and len(call.outs) > 1 else facets

    over = "a sum over channels loses nothing" if sums else "channels that are reduced together stay"
    rule.__doc__ = f"Channels pass along the other dimensions; {over}."
    return rule


add("sum nansum linalg_vector_norm norm frobenius_norm count_nonzero", "reduce", _rule(1, True))
add("mean amax amin var std var_mean std_mean median any", "reduce", _rule(1, False, several=True))


_largest = _rule(1, False, several=True)


def largest(context: Context, call: Call) -> Any:
    """Of one tensor a reduction, of two tensors the larger or smaller of each pair."""
    return (extremum if isinstance(call.first("other"), fx.Node) else _largest)(context, call)


add("max min aminmax", "reduce", largest)
add("prod all logsumexp argmax argmin", "reduce", _rule(-1, False))
