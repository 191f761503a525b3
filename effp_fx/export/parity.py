"""Runs an ONNX file in ONNX Runtime beside the PyTorch network it was made from, and measures how far they differ."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, fx

from effp_fx.dense_part import DensePart
from effp_fx.errors import ExportError
from effp_fx.inputs import Example, map_tensors

TOLERANCE = {torch.float16: 2e-2, torch.float64: 1e-6}
USUAL_TOLERANCE = 1e-3
"""Largest error, relative to the largest value of an output, that passes as rounding without another look."""
_NOISE = 10.0
"""An error up to this multiple of what float32 itself loses against float64 passes as rounding too."""

Reference = Callable[[Example], Sequence[Tensor]]


@dataclass
class Errors:
    """The largest error of each output, over all that it was compared with."""

    absolute: dict[str, float] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)
    """Absolute error over the largest finite value of the output; for whole numbers the share that differs."""
    noisy: set[str] = field(default_factory=set)
    """Outputs that float32 rounding itself moves as far."""
    tied: set[str] = field(default_factory=set)
    """Outputs whose order a choice inside the network decides, otherwise here at near ties."""

    def note(self, name: str, absolute: float, relative: float) -> None:
        """Remember an error where it is larger than those before."""
        self.absolute[name] = max(self.absolute.get(name, 0.0), absolute)
        self.relative[name] = max(self.relative.get(name, 0.0), relative)

    def remarks(self) -> tuple[str, ...]:
        """What a reader of the errors must know."""
        lines = []
        if self.noisy:
            lines.append(f"float32 differs from float64 as much as this: {', '.join(sorted(self.noisy))}")
        if self.tied:
            lines.append(f"a choice inside the network falls otherwise at near ties: {', '.join(sorted(self.tied))}")
        return tuple(lines)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU with as many threads as torch has; ExportError where it does not load."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base but this
        raise ExportError("ONNX Runtime does not load the file", seen=str(error).splitlines()[0][:400]) from error


def run_onnx(session: onnxruntime.InferenceSession, part: DensePart, example: Example) -> list[Tensor]:
    """The outputs of the file on the tensors of `example` that it takes."""
    tensors = example.tensors()
    feed = {name: tensors[index].detach().cpu().numpy() for name, index in zip(part.inputs, part.taken, strict=True)}
    try:
        return [torch.from_numpy(value) for value in session.run(list(part.outputs), feed)]
    except Exception as error:  # ONNX Runtime's own exceptions share no base but this
        raise ExportError("ONNX Runtime cannot run the file", seen=str(error).splitlines()[0][:400]) from error


def run_graph(module: fx.GraphModule, part: DensePart, example: Example) -> list[Tensor]:
    """The outputs of the dense part in PyTorch."""
    tensors = example.tensors()
    with torch.no_grad():
        return list(module(*[tensors[index].detach().clone() for index in part.taken]))


def other_values(example: Example, seed: int = 1) -> Example:
    """The example with its real tensors drawn anew, uniform between their smallest and largest value."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        low, high = float(tensor.min()), float(tensor.max())
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low
        return drawn.to(dtype=tensor.dtype, device=tensor.device)

    drawn: Example = map_tensors(draw, example)
    return drawn


def compare(
    found: Sequence[Tensor],
    part: DensePart,
    example: Example,
    reference: Reference,
    errors: Errors,
    *,
    noise: Callable[[], list[float]],
    where: str,
    doubt: str | None = None,
) -> None:
    """Run the reference on `example` and note how far `found` is from it.

    Args:
        found: what ONNX Runtime computed from `example`.
        noise: what each output loses by rounding; asked only where an error is large.
        where: what the file is compared with, on which inputs; for messages.
        doubt: what explains a difference, if there is one.

    Raises:
        ExportError: an output differs by more than rounding explains.
    """
    for index, (name, one, two) in enumerate(zip(part.outputs, found, reference(example), strict=True)):
        absolute, relative = difference(one, two.detach().cpu())
        errors.note(name, absolute, relative)
        if relative <= TOLERANCE.get(two.dtype, USUAL_TOLERANCE):
            continue
        if relative <= _NOISE * noise()[index]:
            errors.noisy.add(name)
        elif part.chosen[index]:
            errors.tied.add(name)
        else:
            raise ExportError(
                "the exported network does not compute the same",
                where=f"output {name}, beside {where}",
                seen=f"relative error {relative:.2e}, absolute {absolute:.2e}" + (f"; {doubt}" if doubt else ""),
                expected=f"at most {TOLERANCE.get(two.dtype, USUAL_TOLERANCE):.0e} of the largest value",
                mend="try another opset or simplify=False; if it stays, report the model",
            )


def difference(one: Tensor, two: Tensor) -> tuple[float, float]:
    """Largest absolute difference, and that over the largest finite value of `two`; infinite where shapes differ or one
    is finite and the other is not."""
    if one.shape != two.shape:
        return math.inf, math.inf
    if not one.numel():
        return 0.0, 0.0
    if not two.is_floating_point():
        gap = (one.double() - two.double()).abs()
        return float(gap.max()), float((gap > 0).double().mean())
    one, two = one.double(), two.double()
    same = (one == two) | (one.isnan() & two.isnan())
    gap = torch.where(same, 0.0, (one - two).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    finite = two[two.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    absolute = float(gap.max())
    return absolute, absolute / scale if scale else (0.0 if not absolute else math.inf)


def rounding(part: DensePart, example: Example) -> list[float]:
    """What each output loses by being computed in float32: its distance from the same graph in float64."""
    try:
        exact = copy.deepcopy(part.graph_module).double()
        double: Example = map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, example)
        results = zip(run_graph(part.graph_module, part, example), run_graph(exact, part, double), strict=True)
        return [difference(one, two)[1] for one, two in results]
    except (RuntimeError, TypeError, ValueError):  # a graph that names float32 somewhere does not run in float64
        return [0.0] * len(part.outputs)
