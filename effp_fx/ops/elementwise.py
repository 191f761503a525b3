"""Elementwise ops: channels that meet in one element are united; what is known of zero is kept."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor, fx

from effp_fx import graph
from effp_fx.ops.context import Call, Context, Facets, signed
from effp_fx.ops.shadow import Shadow, absolute, crop, is_empty, leaky, varying
from effp_fx.ops.table import add

KEEPS_ZERO = (
    "relu relu6 silu gelu tanh hardswish leaky_relu rrelu elu celu selu softsign mish hardtanh hardshrink softshrink "
    "tanhshrink abs neg negative positive sqrt square sin tan asin atan sinh asinh atanh erf expm1 log1p deg2rad "
    "rad2deg floor ceil round trunc fix frac sgn sign nan_to_num dropout feature_dropout native_dropout clone "
    "contiguous detach alias to _to_copy type_as float half double bool int long lift_fresh lift angle real imag conj "
    "conj_physical resolve_conj resolve_neg zeros_like fill_zero zero"
)
MOVES_ZERO = (
    "sigmoid exp exp2 cos cosh acos softplus hardsigmoid log_sigmoid logical_not bitwise_not erfc "
    "isnan isinf isfinite ones_like full_like rand_like randn_like empty_like randint_like bernoulli uniform normal "
    "exponential threshold"
)
UNDEFINED_AT_ZERO = "log log2 log10 acosh rsqrt reciprocal logit lgamma digamma"
"""Their value at zero is no number, or infinite: what follows would be no number for the masked channel either."""
UNDEFINED = "has no finite value where the channel is zero while masked"


def combine(context: Context, call: Call, shadows: Sequence[Shadow], shape: tuple[int, ...], kind: str) -> Facets:
    """The facets of an elementwise result.

    `kind` says what is known of zero: `mul` (zero if any operand is), `add` (if all are), `div` (if the first is),
    `other` (nothing). A facet that meets an operand without channels stays where that operand is broadcast along it
    (size 1) and is frozen where it has a full dimension of its own.
    """
    merged: list[Tensor] = []
    done: list[Shadow] = []
    for shadow in shadows:
        facets = [_seen(facet, shape) for facet in shadow.facets]
        facets = [facet for facet in facets if _fits(context, call, facet, done, merged)]
        merged = [facet for facet in merged if _fits(context, call, facet, [shadow], facets)]
        merged = _merge(context, call, merged, facets, kind, first=not done)
        done.append(shadow)
    return [facet for facet in merged if not is_empty(facet)]


def _seen(facet: Tensor, shape: tuple[int, ...]) -> Tensor:
    return facet.expand(shape)


def _overlap(left: Tensor, right: Tensor) -> bool:
    return bool({*varying(left)} & {*varying(right)})


def _fits(context: Context, call: Call, facet: Tensor, others: Sequence[Shadow], theirs: Sequence[Tensor]) -> bool:
    """Whether the facet can stay beside the other operands; freezes its channels where it cannot."""
    if any(_overlap(facet, other) for other in theirs):
        return True
    for shadow in others:
        offset = facet.dim() - len(shadow.shape)
        if any(dim >= offset and shadow.shape[dim - offset] > 1 for dim in varying(facet)):
            context.freeze(call, facet, "meets a tensor of full size that has no channels along this dimension")
            return False
    return True


def _merge(
    context: Context, call: Call, merged: list[Tensor], facets: list[Tensor], kind: str, *, first: bool
) -> list[Tensor]:
    if first:
        return facets
    result, left = [], list(facets)
    for facet in merged:
        partners = [other for other in left if _overlap(facet, other)]
        left = [other for other in left if not any(other is partner for partner in partners)]
        if not partners:
            result.append(signed(facet, 1 if kind in ("mul", "div") else -1))
        for partner in partners:
            facet = _pair(context, call, facet, partner, kind)
        if partners:
            result.append(facet)
    return result + [signed(facet, 1 if kind == "mul" else -1) for facet in left]


def _pair(context: Context, call: Call, left: Tensor, right: Tensor, kind: str) -> Tensor:
    dims = tuple(sorted({*varying(left), *varying(right)}))
    one, two = crop(left, dims), crop(right, dims)
    if kind == "mul":
        zero = (one > 0) | (two > 0)
    elif kind == "add":
        zero = (one > 0) & (two > 0)
    elif kind == "div":
        zero = (one > 0) & (two < 0)
    else:
        zero = torch.zeros_like(one, dtype=torch.bool)
    united = context.match(call, one, two, "meets elements that belong to no channel")
    return torch.where(zero, united, -united).expand(left.shape)


def operands(call: Call) -> list[Shadow]:
    """The shadows of the operands; numbers have none."""
    found = []
    for value in (*call.node.args, *call.node.kwargs.values()):
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, fx.Node):
                found.append(call.shadow(item))
    return found


def _unary(sign: int) -> Any:
    def rule(context: Context, call: Call) -> Facets:
        shadow = operands(call)[0]
        return [signed(facet, sign).expand(call.out.shape) for facet in shadow.facets]

    rule.__doc__ = (
        "Passes channels on; zero stays zero." if sign > 0 else "Passes channels on; zero does not stay zero."
    )
    return rule


def undefined_at_zero(context: Context, call: Call) -> Facets:
    """Passes channels that are not zero while masked; infinite at zero, so those that are stay."""
    return [leaky(facet) for facet in _nowhere_zero(context, call, operands(call)[0]).facets]


def _nowhere_zero(context: Context, call: Call, shadow: Shadow) -> Shadow:
    """Freeze the channels that are exactly zero while masked."""
    for facet in shadow.facets:
        small = crop(facet)
        context.freeze(call, small[small > 0], UNDEFINED)
    return shadow


def alpha_dropout(context: Context, call: Call) -> Facets:
    """Passes channels on; in train mode zero does not stay zero."""
    return [signed(facet, -1 if call["train"] else 1) for facet in operands(call)[0].facets]


def _scalar(call: Call) -> Any:
    return call.first("other", "value", "exponent", "mat2")


def additive(context: Context, call: Call) -> Facets:
    """Unites channels; zero where all operands are."""
    if isinstance(_scalar(call), Number) and _scalar(call) != 0:
        return [signed(facet, -1) for facet in operands(call)[0].facets]
    return combine(context, call, operands(call), call.out.shape, "add")


def multiplicative(context: Context, call: Call) -> Facets:
    """Unites channels; zero where any operand is."""
    return combine(context, call, operands(call), call.out.shape, "mul")


def divided(context: Context, call: Call) -> Facets:
    """Unites channels; zero where the dividend is. A divisor that is zero while masked stays."""
    dividend, divisor = (call.shadow(call.first(*names)) for names in (("self", "input"), ("other",)))
    _nowhere_zero(context, call, divisor)
    if not isinstance(call.first("self", "input"), fx.Node):
        return [leaky(facet) for facet in divisor.facets]
    return combine(context, call, [dividend, divisor], call.out.shape, "div")


def tied(context: Context, call: Call) -> Facets:
    """Unites channels; nothing is known of the value."""
    return [leaky(facet) for facet in combine(context, call, operands(call), call.out.shape, "other")]


def chosen(context: Context, call: Call) -> Facets:
    """where: unites channels; zero where both choices are."""
    tensors = [call.shadow(value) for value in (call["self"], call["other"]) if isinstance(value, fx.Node)]
    numbers = [value for value in (call["self"], call["other"]) if not isinstance(value, fx.Node)]
    shape = tuple(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    choices = combine(context, call, tensors, shape, "add")
    if any(value != 0 for value in numbers):
        choices = [leaky(facet) for facet in choices]
    condition = call.shadow(call["condition"])
    doubtful = Shadow(condition.shape, tuple(leaky(facet) for facet in condition.facets), condition.from_input)
    return combine(context, call, [Shadow(shape, tuple(choices)), doubtful], call.out.shape, "mul")


def power(context: Context, call: Call) -> Facets:
    """A positive power keeps zero."""
    exponent = call["exponent"]
    if isinstance(exponent, (int, float)):
        source = call.shadow(call["self"])
        if exponent < 0:
            return undefined_at_zero(context, call)
        return [signed(facet, 1 if exponent > 0 else -1) for facet in source.facets]
    return tied(context, call)


def clamped(context: Context, call: Call) -> Facets:
    """Keeps zero where zero lies within the bounds."""
    low, high = call.first("min", "min_val"), call.first("max", "max_val")
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return tied(context, call)
    inside = (low is None or low <= 0) and (high is None or high >= 0)
    return [signed(facet, 1 if inside else -1) for facet in operands(call)[0].facets]


def extremum(context: Context, call: Call) -> Facets:
    """The larger or smaller of two: zero where both are."""
    return combine(context, call, operands(call), call.out.shape, "add")


def filled(context: Context, call: Call) -> Facets:
    """Fills where a mask says so: filling with 0 keeps zero."""
    value = call["value"]
    source, mask = call.shadow(call["self"]), call.shadow(call["mask"])
    if isinstance(value, (int, float)) and value == 0:
        mask = Shadow(mask.shape, tuple(leaky(facet) for facet in mask.facets))  # where it is false the value shows
        return combine(context, call, [source, mask], call.out.shape, "mul")
    return tied(context, call)


def prelu(context: Context, call: Call) -> Facets:
    """A slope per channel follows the channel."""
    shadow, weight = call.shadow(call["self"]), call.shadow(call["weight"])
    if not weight.facets:
        return list(shadow.facets)
    rank = len(call.out.shape)
    view = [1] * rank
    view[1 if rank > 1 else 0] = weight.shape[0]
    # A slope of zero silences one side only, so the sign is that of the value.
    slope = Shadow(tuple(view), tuple(leaky(facet.reshape(view)) for facet in weight.facets), from_input=False)
    return combine(context, call, [shadow, slope], call.out.shape, "mul")


def add_product(context: Context, call: Call) -> Facets:
    """self + value * tensor1 * tensor2."""
    product = combine(
        context, call, [call.shadow(call["tensor1"]), call.shadow(call["tensor2"])], call.out.shape, "mul"
    )
    return combine(
        context, call, [call.shadow(call["self"]), Shadow(call.out.shape, tuple(product))], call.out.shape, "add"
    )


def gated(context: Context, call: Call) -> Facets:
    """Gated linear unit: one half, times a gate made of the other."""
    shadow = call.shadow(call["self"])
    dim = call["dim"] % len(shadow.shape)
    half = shadow.shape[dim] // 2
    value = Shadow(call.out.shape, tuple(facet.narrow(dim, 0, half) for facet in shadow.facets))
    gate = Shadow(call.out.shape, tuple(leaky(facet.narrow(dim, half, half)) for facet in shadow.facets))
    return combine(context, call, [value, gate], call.out.shape, "mul")


def written(context: Context, call: Call) -> Facets:
    """copy_: the target takes the source's channels, and what it held along them goes with them."""
    source, target = call.shadow(call["src"]), call.shadow(call["self"])
    held = Shadow(target.shape, tuple(leaky(facet) for facet in target.facets))
    return combine(context, call, [source, held], call.out.shape, "mul")


def filled_whole(context: Context, call: Call) -> Facets:
    """fill_: the tensor keeps its channels; it is zero where it is filled with 0."""
    zero = _literal(call["value"]) == 0
    return [absolute(facet) if zero else leaky(facet) for facet in call.shadow(call["self"]).facets]


def _literal(value: Any) -> float | None:
    """A number that stands in the model's code: as it is, or as the tensor that torch made of it for this one op."""
    if not isinstance(value, fx.Node):
        return value if isinstance(value, (int, float)) else None
    source = value.args[0] if graph.op_name(value) == "aten.clone" and len(value.users) == 1 else None
    return source.meta.get("number") if isinstance(source, fx.Node) else None


add(KEEPS_ZERO, "pass", _unary(1))
add(MOVES_ZERO, "pass", _unary(-1))
add(UNDEFINED_AT_ZERO, "pass", undefined_at_zero)
add("alpha_dropout feature_alpha_dropout", "pass", alpha_dropout)
add("add sub rsub subtract __iadd__ __isub__ lerp", "tie", additive)
add("mul multiply __imul__ bitwise_and logical_and", "tie", multiplicative)
add("div divide true_divide floor_divide remainder fmod", "tie", divided)
add("maximum minimum fmax fmin", "tie", extremum)
add("where", "tie", chosen)
add("eq ne lt le gt ge logical_or logical_xor bitwise_or bitwise_xor atan2 hypot logaddexp xlogy", "tie", tied)
add("pow", "tie", power)
add("clamp clamp_min clamp_max clip", "pass", clamped)
add("masked_fill", "tie", filled)
add("prelu _prelu_kernel", "carry", prelu)
add("addcmul", "tie", add_product)
add("glu", "tie", gated)
add("copy", "tie", written)
add("fill", "pass", filled_whole)
