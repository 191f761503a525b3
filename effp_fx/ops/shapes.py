"""The shape of what an op returns, for ops that a run spends its time on: a rule each, of the op's named arguments.

A rule gives None where the op is to be computed: for a form that it does not cover, and for arguments that do not fit,
which the op shall refuse itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from effp_fx.op_mode import op_tensors, op_text
from effp_fx.ops.convolution import CONVOLUTIONS

Arguments = Mapping[str, Any]
Shape = tuple[int, ...]
ShapeRule = Callable[[Arguments], Shape | None]

_DECIDED_BY_VALUES = {"where.default", "argwhere", "nonzero_numpy", "repeat_interleave", "one_hot", "tensor_split"}
"""Ops of ATen whose result has a shape that values may decide, and which torch does not mark as such."""
_READS = "aten.resolve_conj.default"
"""What `numpy()` and `tolist()` call before they read."""


def depends_on_values(func: Any, args: Any) -> bool:
    """Whether values decide the shape of what an op returns, or are about to be read in Python."""
    name = op_text(func)
    space, _, own = name.partition(".")
    if name == "aten.index.Tensor":  # torch marks it for its masks; with numbers the shape is that of the numbers
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if space != "aten" or name == _READS or own in _DECIDED_BY_VALUES or own.partition(".")[0] in _DECIDED_BY_VALUES:
        return True
    return torch.Tag.dynamic_output_shape in func.tags


def _convolution(a: Arguments) -> Shape | None:
    source, weight, groups = a["input"], a["weight"], a["groups"]
    rank, transposed = weight.dim() - 2, "output_padding" in a
    read, made = weight.shape[1] * groups, weight.shape[0]
    if transposed:
        read, made = made, read
    if (
        source.dtype != weight.dtype
        or isinstance(a["padding"], str)
        or source.dim() - rank not in (1, 2)
        or source.shape[-rank - 1] != read
    ):
        return None
    if weight.shape[0] % groups or not _fit(a, ("bias",), (made,)):
        return None
    sizes = (_unfolded if transposed else _windows)(source.shape[-rank:], weight.shape[2:], a)
    return None if min(sizes) < 1 else (*source.shape[: -rank - 1], made, *sizes)


def _windows(sizes: Sequence[int], kernel: Sequence[int], a: Arguments) -> list[int]:
    """How many windows of this size fit along each dimension."""
    found = []
    each = (_each(a[name], len(sizes)) for name in ("stride", "padding", "dilation"))
    for size, window, step, pad, gap in zip(sizes, kernel, *each, strict=True):
        span = size + 2 * pad - gap * (window - 1) - 1
        count = span // step + 1
        if a.get("ceil_mode") and span % step and count * step < size + pad:  # one more, if it begins within
            count += 1
        found.append(count)
    return found


def _unfolded(sizes: Sequence[int], kernel: Sequence[int], a: Arguments) -> list[int]:
    """What as many windows of this size cover along each dimension."""
    each = (_each(a[name], len(sizes)) for name in ("stride", "padding", "dilation", "output_padding"))
    return [
        (size - 1) * step - 2 * pad + gap * (window - 1) + more + 1
        for size, window, step, pad, gap, more in zip(sizes, kernel, *each, strict=True)
    ]


def _each(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * rank if len(values) == 1 else values


def _fit(a: Arguments, names: Sequence[str], shape: Sequence[int]) -> bool:
    """Whether those of these arguments that are given have this shape."""
    return all(a[name] is None or tuple(a[name].shape) == tuple(shape) for name in names)


def _linear(a: Arguments) -> Shape | None:
    source, weight = a["input"], a["weight"]
    fits = weight.dim() == 2 and source.dim() and (source.shape[-1], source.dtype) == (weight.shape[1], weight.dtype)
    return (*source.shape[:-1], weight.shape[0]) if fits and _fit(a, ("bias",), weight.shape[:1]) else None


def _batch_norm(a: Arguments) -> Shape | None:
    source = a["input"]
    fits = source.dim() > 1 and _fit(a, ("weight", "bias", "running_mean", "running_var"), source.shape[1:2])
    return tuple(source.shape) if fits else None


def _layer_norm(a: Arguments) -> Shape | None:
    source, sizes = a["input"], tuple(a["normalized_shape"])
    fits = tuple(source.shape[source.dim() - len(sizes) :]) == sizes and _fit(a, ("weight", "bias"), sizes)
    return tuple(source.shape) if fits else None


def _group_norm(a: Arguments) -> Shape | None:
    source = a["input"]
    fits = source.dim() > 1 and source.shape[1] % a["num_groups"] == 0
    return tuple(source.shape) if fits and _fit(a, ("weight", "bias"), source.shape[1:2]) else None


def _alike(a: Arguments) -> Shape | None:
    """Elementwise, of one tensor, without a cast."""
    tensors = op_tensors(dict(a))
    return tuple(tensors[0].shape) if len(tensors) == 1 and a.get("dtype") is None else None


def _together(a: Arguments) -> Shape | None:
    """Elementwise, of tensors that are broadcast against each other."""
    tensors = op_tensors(dict(a))
    if len({value.dtype for value in tensors}) > 1:
        return None
    if len({value.shape for value in tensors}) == 1:
        return tuple(tensors[0].shape)
    try:
        return tuple(torch.broadcast_shapes(*(value.shape for value in tensors)))
    except RuntimeError:
        return None


def _cat(a: Arguments) -> Shape | None:
    tensors: list[Tensor] = a["tensors"]
    if len({(value.dim(), value.dtype) for value in tensors}) > 1:
        return None
    first, dim = tensors[0].shape, a["dim"] % tensors[0].dim()
    if len({(*value.shape[:dim], *value.shape[dim + 1 :]) for value in tensors}) > 1:
        return None
    return *first[:dim], sum(value.shape[dim] for value in tensors), *first[dim + 1 :]


def _max_pool2d(a: Arguments) -> Shape | None:
    source, kernel = a["self"], _each(a["kernel_size"], 2)
    sizes = _windows(source.shape[-2:], kernel, {**a, "stride": a["stride"] or kernel})
    return (*source.shape[:-2], *sizes) if min(sizes) > 0 else None


def _mean(a: Arguments) -> Shape | None:
    source = a["self"]
    if a.get("dim") is None or a["dtype"] is not None:
        return None
    dims = {dim % source.dim() for dim in a["dim"]}
    sizes = [1 if dim in dims else size for dim, size in enumerate(source.shape)]
    return tuple(size for dim, size in enumerate(sizes) if a["keepdim"] or dim not in dims)


PRODUCTS: dict[str, ShapeRule] = {
    **dict.fromkeys((name for name in CONVOLUTIONS.split() if name != "convolution"), _convolution),
    "linear": _linear,
}
"""Of an input and a weight: nearly all of a run's time."""
JOINING: dict[str, ShapeRule] = {**dict.fromkeys(["add", "sub", "rsub", "mul", "div"], _together), "cat": _cat}
"""Of several tensors alike."""
_ELEMENTWISE = """
    relu relu6 silu gelu hardswish hardsigmoid hardtanh leaky_relu elu selu mish softplus sigmoid tanh exp log sqrt
    rsqrt abs neg square pow clamp clamp_min clamp_max dropout feature_dropout alpha_dropout contiguous clone softmax
    log_softmax
"""
FOLLOWING: dict[str, ShapeRule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _alike),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "max_pool2d": _max_pool2d,
    "mean": _mean,
}
"""Of their first argument, which decides the shape."""
