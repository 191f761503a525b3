"""What an op returns, in shape alone: for runs that ask which ops follow each other and how large their results are.

An outline is a tensor of the right shape in memory that is zero and that many of them share: it takes no time to make.
Outlines come out of the products (`conv2d`, `linear`), nearly all of a run's time, and pass through the ops that follow
those: what these would return is an outline again.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effp_fx.op_mode import op_tensors, op_text

_SMALL = 100_000
"""Multiply-accumulates below which a product is as soon computed as its shape."""
Shape = tuple[int, ...]
_DEPENDS = {"where.default", "argwhere", "nonzero_numpy", "repeat_interleave", "one_hot", "tensor_split"}
"""Ops of ATen whose result has a shape that values may decide, and which torch does not mark as such."""
_READS = "aten.resolve_conj.default"
"""What `numpy()` and `tolist()` call before they read."""


class Values(enum.Enum):
    """Which values of a run are computed."""

    ALL = "all"
    UNTIL_READ = "none as long as nothing depends on them; else the run ends with `ValuesNeeded`"
    NONE = "none: what depends on them is another thing than it would be"


class ValuesNeeded(Exception):
    """Values that were not computed decide what comes next."""


def depends_on_values(func: Any, args: Any) -> bool:
    """Whether values decide the shape of what an op returns, or are about to be read in Python."""
    name = op_text(func)
    space, _, packet = name.partition(".")
    if name == "aten.index.Tensor":  # with numbers it does not
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if space != "aten" or name == _READS or packet in _DEPENDS or packet.partition(".")[0] in _DEPENDS:
        return True
    return torch.Tag.dynamic_output_shape in func.tags


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
        arguments, is not known here, or refuses its arguments, which it shall do itself."""
        name = op_text(func)
        if name in _PRODUCTS:
            return self._product(_PRODUCTS[name], args, kwargs)
        if not any(tensor in self for tensor in op_tensors(args)):
            return None
        packet = name.partition(".")[2].partition(".")[0]
        first = args[0]
        if torch.Tag.inplace_view in func.tags:
            return None
        if func._schema.is_mutable:  # what is written to an outline would be seen nowhere
            return first if packet.endswith("_") and isinstance(first, Tensor) and first in self else None
        rule = _JOINING.get(packet) or (_FOLLOWING.get(packet) if isinstance(first, Tensor) and first in self else None)
        if rule is None or not (packet == "contiguous" or all(tensor.is_contiguous() for tensor in op_tensors(args))):
            return None
        shape = rule(args, kwargs)
        return None if shape is None else self.made(shape, op_tensors(args)[0])

    def _product(self, rule: Callable[..., Shape | None], args: Any, kwargs: Any) -> Tensor | None:
        source, weight = args[:2]
        shape = rule(*args, **kwargs)
        if shape is None or (source.dtype, source.device) != (weight.dtype, weight.device):
            return None
        if rule is not _linear and not (source.is_contiguous() and weight.is_contiguous()):
            return None  # what comes out may lie in memory in another order than that of its dimensions
        if source not in self and math.prod(shape) * weight.numel() <= _SMALL * weight.shape[0]:
            return None
        return self.made(shape, source)

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


def _conv(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Shape | None:
    rank = weight.dim() - 2
    if source.dim() - rank not in (1, 2) or source.shape[-rank - 1] != weight.shape[1] * groups:
        return None
    if weight.shape[0] % groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    sizes = _windows(source.shape[-rank:], weight.shape[2:], stride, padding, dilation)
    return None if min(sizes) < 1 else (*source.shape[: -rank - 1], weight.shape[0], *sizes)


def _conv_transpose(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Shape | None:
    rank, made = weight.dim() - 2, weight.shape[1] * groups
    if source.dim() - rank not in (1, 2) or source.shape[-rank - 1] != weight.shape[0] or weight.shape[0] % groups:
        return None
    if bias is not None and bias.shape != (made,):
        return None
    each = (_each(value, rank) for value in (stride, padding, output_padding, dilation))
    sizes = [
        (size - 1) * step - 2 * pad + gap * (window - 1) + more + 1
        for size, window, step, pad, more, gap in zip(source.shape[-rank:], weight.shape[2:], *each, strict=True)
    ]
    return None if min(sizes) < 1 else (*source.shape[: -rank - 1], made, *sizes)


def _windows(
    sizes: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool = False
) -> list[int]:
    rank = len(sizes)
    found = []
    for size, window, step, pad, gap in zip(
        sizes, *(_each(value, rank) for value in (kernel, stride, padding, dilation)), strict=True
    ):
        span = size + 2 * pad - gap * (window - 1) - 1
        count = -(-span // step) + 1 if ceil_mode else span // step + 1
        if ceil_mode and (count - 1) * step >= size + pad:  # a window that would start beyond the padding
            count -= 1
        found.append(count)
    return found


def _each(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list, torch.Size)) else [value]
    return values * rank if len(values) == 1 else values


def _linear(source: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    if weight.dim() != 2 or not source.dim() or source.shape[-1] != weight.shape[1]:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return *source.shape[:-1], weight.shape[0]


_PRODUCTS: dict[str, Callable[..., Shape | None]] = {
    **{f"aten.conv{rank}d.default": _conv for rank in (1, 2, 3)},
    **{f"aten.conv_transpose{rank}d.{'default' if rank == 1 else 'input'}": _conv_transpose for rank in (1, 2, 3)},
    "aten.linear.default": _linear,
}


def _elementwise(args: Any, kwargs: Any) -> Shape | None:
    plain = len(op_tensors((args, kwargs))) == 1 and not kwargs
    return None if not plain or any(isinstance(value, torch.dtype) for value in args) else tuple(args[0].shape)


def _batch_norm(args: Any, _kwargs: Any) -> Shape | None:
    parts = [value for value in args[1:5] if isinstance(value, Tensor)]
    fits = args[0].dim() > 1 and all(value.shape == args[0].shape[1:2] for value in parts)
    return tuple(args[0].shape) if fits else None


def _layer_norm(args: Any, _kwargs: Any) -> Shape | None:
    sizes = tuple(args[1])
    parts = [value for value in args[2:4] if isinstance(value, Tensor)]
    fits = args[0].shape[args[0].dim() - len(sizes) :] == sizes and all(value.shape == sizes for value in parts)
    return tuple(args[0].shape) if fits else None


def _group_norm(args: Any, _kwargs: Any) -> Shape | None:
    channels = args[0].shape[1:2]
    parts = [value for value in args[2:4] if isinstance(value, Tensor)]
    fits = all(value.shape == channels for value in parts) and channels and channels[0] % args[1] == 0
    return tuple(args[0].shape) if fits else None


def _broadcast(args: Any, _kwargs: Any) -> Shape | None:
    tensors = op_tensors(args[:2])
    if any(value.dtype != tensors[0].dtype for value in tensors):
        return None
    if len({value.shape for value in tensors}) == 1:
        return tuple(tensors[0].shape)
    try:
        return tuple(torch.broadcast_shapes(*(value.shape for value in tensors)))
    except RuntimeError:
        return None


def _cat(args: Any, kwargs: Any) -> Shape | None:
    tensors, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
    first = tensors[0]
    rank = first.dim()
    if any(value.dim() != rank or value.dtype != first.dtype for value in tensors):
        return None
    dim %= rank
    if len({(*value.shape[:dim], *value.shape[dim + 1 :]) for value in tensors}) > 1:
        return None
    return *first.shape[:dim], sum(value.shape[dim] for value in tensors), *first.shape[dim + 1 :]


def _max_pool2d(
    source: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Shape | None:
    sizes = _windows(source.shape[-2:], kernel, stride or kernel, padding, dilation, ceil_mode)
    return (*source.shape[:-2], *sizes) if min(sizes) > 0 else None


def _mean(args: Any, kwargs: Any) -> Shape | None:
    if len(args) < 2 or args[1] is None or kwargs:
        return None
    source, keep = args[0], len(args) > 2 and args[2]
    dims = {dim % source.dim() for dim in args[1]}
    sizes = [(1 if keep else 0) if dim in dims else size for dim, size in enumerate(source.shape)]
    return tuple(size for dim, size in enumerate(sizes) if keep or dim not in dims)


_ELEMENTWISE = """
    relu relu6 silu gelu hardswish hardsigmoid hardtanh leaky_relu elu selu mish softplus sigmoid tanh exp log sqrt
    rsqrt abs neg square pow clamp clamp_min clamp_max dropout feature_dropout alpha_dropout contiguous clone softmax
    log_softmax
"""
_FOLLOWING: dict[str, Callable[[Any, Any], Shape | None]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "max_pool2d": lambda args, kwargs: _max_pool2d(*args, **kwargs),
    "mean": _mean,
}
"""Ops that pass an outline on which is their first argument."""
_JOINING: dict[str, Callable[[Any, Any], Shape | None]] = {
    **dict.fromkeys(["add", "sub", "rsub", "mul", "div"], _broadcast),
    "cat": _cat,
}
"""Ops whose result is an outline if any of their arguments is."""
