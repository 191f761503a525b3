"""Compares two models on the same inputs, op by op where a choice is made, and output by output at the end.

Detectors choose: top-k, sorting, thresholds, non-maximum suppression. Two runs that differ by a rounding error may
choose differently where scores tie, and nothing after that can be compared. So the second run takes over the choices of
the first - after the values that were chosen among have been compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from effp_fx.capture import Recording, replay, tensors_of
from effp_fx.errors import VerificationError
from effp_fx.inputs import Example, to_dtype
from effp_fx.module_copy import copied
from effp_fx.watcher import Step

TOLERANCE = 1e-9
"""Largest relative error in float64. A right lowering shows 1e-15, a wrong one 1e-4 and more."""
SINGLE_TOLERANCE = 1e-4
"""The same in float32, or 20 times what float32 itself loses against float64 on this model, if that is more."""
Place = tuple[str, str, str]
"""Op, module and source line of a choice."""
_ROUNDS = {"aten.floor", "aten.ceil", "aten.round", "aten.trunc", "aten.floor_divide"}


@dataclass(frozen=True)
class OutputError:
    """How far one output of the second model is from the first's."""

    name: str
    shape: tuple[int, ...]
    max_absolute: float
    max_relative: float
    """Largest absolute error over the largest absolute value of the output."""


@dataclass(frozen=True)
class Check:
    """One pair of runs."""

    mode: str
    dtype: str
    tolerance: float
    outputs: tuple[OutputError, ...]
    choices: int = 0
    """Choices (top-k, thresholds, suppression) whose inputs were compared."""
    note: str = ""

    @property
    def max_relative_error(self) -> float:
        """The largest relative error of any output, or of anything that was chosen among."""
        return max((output.max_relative for output in self.outputs), default=0.0)

    @property
    def equal(self) -> bool:
        """Whether it is within the tolerance (never, where it is no number)."""
        return self.max_relative_error <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """What was compared, and how it came out."""

    checks: tuple[Check, ...]

    @property
    def equal(self) -> bool:
        """Whether every check passed."""
        return bool(self.checks) and all(check.equal for check in self.checks)

    @property
    def max_relative_error(self) -> float:
        """The largest relative error in float64, or in float32 where the model does not run in float64."""
        exact = [check for check in self.checks if check.dtype == "float64"]
        return max((check.max_relative_error for check in exact or self.checks), default=float("nan"))

    def __str__(self) -> str:
        lines = [
            f"{check.mode:5} {check.dtype}: largest relative error {check.max_relative_error:.1e} "
            f"(allowed {check.tolerance:.1e})" + (f"; {check.note}" if check.note else "")
            for check in self.checks
        ]
        return "\n".join(lines)


@dataclass
class _Choices:
    """Records the choices of one run; in a second one compares what was chosen among and imposes them."""

    recorded: list[tuple[Place, list[Tensor], list[Tensor]]] = field(default_factory=list)
    following: bool = False
    position: int = 0
    compared: int = 0
    worst: float = 0.0

    def watch(self, step: Step, outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor] | None:
        if not _is_choice(step.name, outputs, inputs) or step.target._schema.is_mutable:
            return None
        place = (step.name, step.module, step.source)
        if not self.following:
            self.recorded.append((place, [value.clone() for value in inputs], [value.clone() for value in outputs]))
            return None
        found = next((at for at in range(self.position, len(self.recorded)) if self.recorded[at][0] == place), None)
        if found is None:
            return None  # one that the first run had no need of
        self.position = found + 1  # what lies between was cached by the first run of the two
        _, before, chosen = self.recorded[found]
        self.compared += 1
        if [value.shape for value in before] != [value.shape for value in inputs]:
            return None  # a choice within the channels themselves: its effect shows further on
        for one, two in zip(before, inputs, strict=True):
            if one.is_floating_point():
                self.worst = max(self.worst, difference(one, two)[1])
        return [value.to(own.dtype) for value, own in zip(chosen, outputs, strict=True)]

    def follow(self) -> _Choices:
        """The same choices, to be imposed on another run."""
        return _Choices(self.recorded, following=True)


def _is_choice(name: str, outputs: list[Tensor], inputs: list[Tensor]) -> bool:
    if name in _ROUNDS:
        return True
    return any(value.is_floating_point() for value in inputs) and any(
        not value.is_floating_point() for value in outputs
    )


def difference(one: Tensor, two: Tensor) -> tuple[float, float]:
    """Largest absolute and relative error; infinite for other shapes, and where only one of them is finite."""
    if one.shape != two.shape:
        return float("inf"), float("inf")
    if not one.numel():
        return 0.0, 0.0
    left, right = one.double(), two.double()
    same = (left == right) | (left.isnan() & right.isnan())
    gap = torch.where(same, 0.0, (left - right).abs())
    largest = float(gap.max()) if not bool(gap.isnan().any()) else float("inf")
    finite = left[left.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return largest, largest / scale if scale > 0 else (0.0 if largest == 0 else float("inf"))


Progress = Callable[[str], None]


def verify(
    masked: nn.Module,
    compact: nn.Module,
    example: Example,
    *,
    train_example: Example | None = None,
    modes: tuple[str, ...] = ("eval", "train"),
    progress: Progress = lambda _: None,
) -> Verification:
    """Compare two models on the same inputs, in float64 and float32, eval and train mode; both are left as they were.

    In train mode dropout is off and both runs draw the same random numbers. Train mode is left out where the first
    model itself fails in it.

    Args:
        masked: the reference.
        compact: the model that should compute the same.
        example: inputs for eval mode.
        train_example: inputs for train mode; None: the same.
        modes: which of `eval` and `train` to compare.
        progress: called with a line before each comparison.
    """
    checks: list[Check] = []
    for mode in modes:
        train = mode == "train"
        inputs = train_example if train and train_example is not None else example
        progress(f"verify in {mode} mode")
        checks += _compare_mode(masked, compact, inputs, mode)
    return Verification(tuple(checks))


def _compare_mode(masked: nn.Module, compact: nn.Module, example: Example, mode: str) -> list[Check]:
    exact = _reference(masked, example, torch.float64, mode, _Choices())
    single = _reference(
        masked, example, torch.float32, mode, exact[1].follow() if exact[0].error is None else _Choices()
    )
    comparable = single[0].error is None and exact[0].error is None
    if single[0].error is not None:  # rounding alone took another path: compare in float32 without a float64 twin
        single = _reference(masked, example, torch.float32, mode, _Choices())
    if single[0].error is not None and exact[0].error is not None:
        if mode == "train":
            return []
        raise VerificationError("the reference does not run", where=mode, seen=str(single[0].error))
    checks = []
    floor = 0.0
    if exact[0].error is None:
        checks.append(_check(compact, example, torch.float64, mode, exact, TOLERANCE))
        if comparable:
            floor = max((output.max_relative for output in _outputs(exact[0], single[0])), default=0.0)
    if single[0].error is None:
        follow = (single[0], exact[1] if comparable else single[1])
        checks.append(_check(compact, example, torch.float32, mode, follow, max(SINGLE_TOLERANCE, 20 * floor)))
    return checks


def _reference(
    model: nn.Module, example: Example, dtype: torch.dtype, mode: str, choices: _Choices
) -> tuple[Recording, _Choices]:
    twin = copied(model).to(dtype)
    recording = replay(twin, to_dtype(example, dtype), choices.watch, train=mode == "train")
    return recording, choices


def _check(
    compact: nn.Module,
    example: Example,
    dtype: torch.dtype,
    mode: str,
    reference: tuple[Recording, _Choices],
    tolerance: float,
) -> Check:
    recording, choices = _reference(compact, example, dtype, mode, reference[1].follow())
    name = str(dtype).removeprefix("torch.")
    if recording.error is not None:
        failed = OutputError("(the compact model failed)", (), float("inf"), float("inf"))
        return Check(
            mode, name, tolerance, (failed,), note=f"{type(recording.error).__name__}: {str(recording.error)[:200]}"
        )
    outputs = _outputs(reference[0], recording)
    if choices.compared and dtype == torch.float64:
        outputs.append(OutputError("(what was chosen among)", (), choices.worst, choices.worst))
    return Check(mode, name, tolerance, tuple(outputs), choices.compared)


def _outputs(one: Recording, two: Recording) -> list[OutputError]:
    left, right = tensors_of(one.output)[0], tensors_of(two.output)[0]
    if len(left) != len(right):
        return [OutputError("(another number of outputs)", (), float("inf"), float("inf"))]
    errors = []
    for index, (first, second) in enumerate(zip(left, right, strict=True)):
        errors.append(OutputError(f"output {index}", tuple(first.shape), *difference(first, second)))
    return errors
