"""Where each layer would run on a board with a DLA, why not on the DLA, and how often the network changes sides.

The rules are those of NVIDIA's guide; what it does not say (the size of the DLA's buffers, for one) is not checked, so
a layer that is placed on the DLA here may still fall back there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from effp_fx.export.tensorrt.network import STANDARD, Node, Shape
from effp_fx.export.tensorrt.tables import Accelerator

DLA, GPU, NOWHERE = "DLA", "GPU", "-"
"""NOWHERE: computed while the engine is built, or nothing to do at run time."""

_NOTHING = {"Identity", "Dropout"}
Reason = str | None
"""Why not on the DLA; None where it can run there."""


@dataclass(frozen=True)
class Placement:
    """Where a layer runs."""

    device: str
    why: Reason = None


@dataclass(frozen=True)
class DlaSummary:
    """The network on the DLA as a whole."""

    engine: str
    layers_on_dla: int
    layers_on_gpu: int
    macs_share: float
    """Part of the multiply-accumulates that the DLA does."""
    switches: int
    """How often the work goes from one device to the other, in the order that changes least."""
    loadables: int
    """Pieces on the DLA; a core holds `most_loadables`."""
    most_loadables: int


def place(node: Node, engine: Accelerator, precision: str = "FP16") -> Placement:
    """Where a node runs in this precision (FP16 or INT8), with GPU fall-back allowed."""
    if node.folded or node.op in _NOTHING:
        return Placement(NOWHERE)
    if node.depth or node.domain not in STANDARD:
        return Placement(GPU, "the body of a loop or branch" if node.depth else "a plugin")
    if node.network.quantised:
        return Placement(GPU, "ranges written into the file (Q/DQ): the DLA takes INT8 from a calibration only")
    rule = _RULES.get(node.op)
    if rule is None:
        return Placement(GPU, f"the DLA has no {node.op}")
    why = _shapes(node, engine.rules) or rule(node, engine.rules, precision)
    return Placement(GPU, why) if why else Placement(DLA)


def summarise(
    nodes: Sequence[Node], places: Sequence[Placement], macs: Sequence[int], engine: Accelerator
) -> DlaSummary:
    """Count layers, work and changes of side."""
    runs = _runs(nodes, places)
    total = sum(count for count, spot in zip(macs, places, strict=True) if spot.device != NOWHERE)
    done = sum(count for count, spot in zip(macs, places, strict=True) if spot.device == DLA)
    return DlaSummary(
        engine.name,
        sum(spot.device == DLA for spot in places),
        sum(spot.device == GPU for spot in places),
        done / total if total else 0.0,
        max(len(runs) - 1, 0),
        runs.count(DLA),
        engine.rules["most_loadables"],
    )


def _runs(nodes: Sequence[Node], places: Sequence[Placement]) -> list[str]:
    """The devices in turn, when each goes on as long as it has something to do."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    waits = [{makers[name] for name in node.inputs if name in makers} for node in nodes]
    left = {index for index, spot in enumerate(places) if spot.device != NOWHERE}
    done = set(range(len(nodes))) - left
    runs: list[str] = []
    device = DLA
    while left:
        ready = [index for index in sorted(left) if waits[index] <= done]
        if not ready:  # a body reads what stands outside of it: take the rest as it comes
            break
        mine = [index for index in ready if places[index].device == device]
        if not mine:
            device = GPU if device == DLA else DLA
            continue
        runs += [device] if not runs or runs[-1] != device else []
        done |= set(mine)
        left -= set(mine)
    return runs


def _shapes(node: Node, rules: dict[str, Any]) -> Reason:
    given = [position for position in range(len(node.inputs)) if node.has(position)]
    shapes = [node.shape(position) for position in given if not node.is_constant(position)]
    shapes.append(node.output_shape())
    for shape in shapes:
        if shape is None or None in shape:
            return "a size that is free or unknown"
        if len(shape) != 4:
            return f"a tensor of {len(shape)} dimensions, the DLA has 4"
        sizes = [size for size in shape if size is not None]
        if max(sizes[1:]) > rules["dimension"][1] or sizes[0] > rules["batch"]:
            return f"a size above {rules['dimension'][1]}"
    return None


def _within(values: Sequence[int], limits: Sequence[int], what: str) -> Reason:
    low, high = limits
    bad = [value for value in values if not low <= value <= high]
    return f"{what} {bad[0]}, the DLA takes {low} to {high}" if bad else None


def _kernel(node: Node) -> list[int]:
    weight = node.shape(1)
    return list(node.attributes.get("kernel_shape") or [size or 0 for size in (weight or ())[2:]])


def _convolution(node: Node, rules: dict[str, Any], _: str) -> Reason:
    limits, weight = rules["convolution"], node.shape(1)
    if not node.is_constant(1):
        return "a kernel that is computed"
    pads = list(node.attributes.get("pads", ()))
    kernel = _kernel(node)
    return (
        _within(kernel, limits["kernel"], "kernel size")
        or _within(pads, limits["padding"], "padding")
        or ("padding as large as the kernel" if any(p >= k for p, k in zip(pads, kernel * 2, strict=False)) else None)
        or _within(node.attributes.get("strides", ()), limits["stride"], "stride")
        or _within(node.attributes.get("dilations", ()), limits["dilation"], "dilation")
        or _within([weight[0] or 0] if weight else [], limits["channels"], "channels")
    )


def _deconvolution(node: Node, rules: dict[str, Any], _: str) -> Reason:
    limits, kernel = rules["deconvolution"], _kernel(node)
    low, high = limits["slow_square"]
    if any(node.attributes.get("pads", ())) or any(node.attributes.get("output_padding", ())):
        return "padding of a transposed convolution"
    if node.attributes.get("group", 1) != 1:
        return "groups of a transposed convolution"
    if any(step != 1 for step in node.attributes.get("dilations", ())):
        return "dilation of a transposed convolution"
    if len(set(kernel)) == 1 and low <= kernel[0] <= high:
        return f"square kernel {kernel[0]} of a transposed convolution, switched off as slow to compile"
    if 1 in kernel and max(kernel) in limits["long_kernels"]:
        return None
    strides = node.attributes.get("strides", ())
    return _within(kernel, limits["kernel"], "kernel size") or _within(strides, limits["stride"], "stride")


def _pooling(node: Node, rules: dict[str, Any], _: str) -> Reason:
    limits = rules["pooling"]
    return (
        _within(_kernel(node), limits["kernel"], "window")
        or _within(node.attributes.get("pads", ()), limits["padding"], "padding")
        or _within(node.attributes.get("strides", ()), limits["stride"], "stride")
    )


def _activation(node: Node, rules: dict[str, Any], _: str) -> Reason:
    if node.op not in rules["activations"]:
        return f"the DLA has no {node.op}"
    return "a negative slope" if node.attributes.get("alpha", 0.01) < 0 and node.op == "LeakyRelu" else None


def _clip(node: Node, rules: dict[str, Any], _: str) -> Reason:
    bounds = [node.constant(1), node.constant(2)]
    low, high = (None if bound is None else float(bound.reshape(-1)[0]) for bound in bounds)
    least, most = rules["clipped_relu"]
    if low == 0 and high is not None and least <= high <= most:
        return None
    return f"a clip other than from 0 to {least} ... {most}"


def _prelu(node: Node, _: dict[str, Any], __: str) -> Reason:
    slope = node.shape(1)
    return None if node.is_constant(1) and slope is not None and len(slope) == 4 else "a slope that is not 4-d constant"


def _elementwise(node: Node, rules: dict[str, Any], _: str) -> Reason:
    if node.op not in rules["elementwise"]:
        return f"the DLA has no {node.op} of elements"
    if len(node.inputs) != 2:
        return f"{node.op} of {len(node.inputs)} tensors"
    shapes = [node.shape(position) for position in (0, 1)]
    whole = node.output_shape()
    # One side may be a number for each channel, or one for all: what the DLA calls a scale, or NC11.
    return None if all(_spreads(shape, whole) for shape in shapes) else "shapes that are not spread over channels alone"


def _spreads(shape: Shape | None, whole: Shape | None) -> bool:
    if shape is None or whole is None:
        return False
    padded = (1,) * (len(whole) - len(shape)) + shape
    return padded == whole or (padded[2:] == (1, 1) and padded[1] in (1, whole[1]))


def _unary(node: Node, rules: dict[str, Any], _: str) -> Reason:
    return None if node.op in rules["unary"] else f"the DLA has no {node.op}"


def _free(_: Node, __: dict[str, Any], ___: str) -> Reason:
    return None


def _concat(node: Node, _: dict[str, Any], __: str) -> Reason:
    if len(node.inputs) < 2:
        return "a concatenation of one tensor"
    return None if node.attributes.get("axis") in (1, -3) else "a concatenation along another axis than the channels"


def _lrn(node: Node, rules: dict[str, Any], _: str) -> Reason:
    return None if node.attributes.get("size") in rules["lrn_sizes"] else "a window of another size than 3, 5, 7, 9"


def _resize(node: Node, rules: dict[str, Any], _: str) -> Reason:
    mode = node.attributes.get("mode", "nearest")
    if mode not in rules["resize"]:
        return f"resizing by {mode}"
    before, after = node.shape() or (), node.output_shape() or ()
    factors = [(new or 0) / (old or 1) for old, new in zip(before, after, strict=False)]
    if factors[:2] != [1, 1] or any(factor != int(factor) for factor in factors):
        return "a scale that is no whole number"
    return _within([int(factor) for factor in factors[2:]], rules["resize"][mode], f"scale ({mode})")


def _slice(node: Node, rules: dict[str, Any], precision: str) -> Reason:
    if precision not in rules["slice"]:
        return f"slicing in {precision}"
    before, after = node.shape() or (), node.output_shape() or ()
    if not all(node.is_constant(position) for position in range(1, len(node.inputs))):
        return "a slice that is computed"
    return None if before[:1] == after[:1] else "slicing the batch"


def _softmax(node: Node, rules: dict[str, Any], precision: str) -> Reason:
    limits, shape = rules["softmax"], node.shape() or ()
    axis = node.attributes.get("axis", -1)
    if limits is None:
        return "this DLA has no softmax"
    if precision not in limits["precisions"]:
        return f"softmax in {precision}"
    if axis % len(shape) == 0:
        return "softmax over the batch"
    return _within([shape[axis] or 0], [1, limits["axis"]], "softmax over")


_RULES: dict[str, Callable[[Node, dict[str, Any], str], Reason]] = {
    "Conv": _convolution,
    "ConvTranspose": _deconvolution,
    "MaxPool": _pooling,
    "AveragePool": _pooling,
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "LeakyRelu"), _activation),
    "Clip": _clip,
    "PRelu": _prelu,
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min"), _elementwise),
    "Abs": _unary,
    "BatchNormalization": _free,
    "Concat": _concat,
    "LRN": _lrn,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax,
}
