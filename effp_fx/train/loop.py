"""The loop: forward, losses, backward, clip, step. It knows no session: that rides on the optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from effp_fx.errors import TrainingError
from effp_fx.subject import unwrapped
from effp_fx.train.divergence import check_gradients, check_losses
from effp_fx.train.recipe import Recipe

Batches = Iterable[tuple[Sequence[Tensor], Sequence[Mapping[str, Any]]]]
"""Images [3, height, width] in 0 to 1, and targets with `boxes` and `labels`, as torchvision's detectors take them."""

_OWN_SCRIPT = "train it in its own script, with effp_fx.Session(model, optimizer, total_steps)"


class Loop:
    """Trains one detector of torchvision's interface: in training `model(images, targets)` returns a dict of losses.

    Args:
        model: what is trained, with or without DistributedDataParallel around it.
        optimizer: what `recipe.build_optimizer` made; a session may have been attached to it.
        recipe: rates and clipping.
        total_steps: optimizer steps of the whole run.
        average: a moving average to keep beside the model.
        amp: run the forward pass in bfloat16, or in float16 with a GradScaler on GPUs that have no bfloat16.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        total_steps: int,
        *,
        average: AveragedModel | None = None,
        amp: bool = False,
    ) -> None:
        self.model, self.optimizer, self.recipe, self.total_steps = model, optimizer, recipe, total_steps
        check_takes_targets(model)
        self.average, self.amp = average, amp
        # To look for a fault is the work of one process: DistributedDataParallel would wait for the others.
        self._bare = unwrapped(model)
        self.step = 0
        """Batches seen."""
        self.device = next(model.parameters()).device
        half = self.device.type == "cuda" and not torch.cuda.is_bf16_supported()
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp and half)

    def epoch(self, batches: Batches, after: Callable[[dict[str, float]], None] = lambda _: None) -> None:
        """Train on each batch once; `after` is told the losses of each step when it is taken."""
        self.model.train()
        for images, targets in batches:
            after(self.take(images, targets))

    def take(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """One step; returns its losses by their names.

        Raises:
            DivergenceError: a loss or a gradient is not finite; the step is not taken.
            TrainingError: the model returned no losses.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.recipe.rate(self.step, self.total_steps)
        images = [image.to(self.device, non_blocking=True) for image in images]
        targets = [_moved(target, self.device) for target in targets]
        with torch.autocast(self.device.type, self.dtype, enabled=self.amp):
            losses = _losses(self.model(images, targets), self.model)
        terms = torch.stack([loss.float() for loss in losses.values()])
        values = dict(zip(losses, terms.detach().tolist(), strict=True))  # of a GPU all at once: it is waited for
        check_losses(values, self._bare, images, targets, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(terms.sum()).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        if not self.scaler.is_enabled():  # a scaler expects some, and leaves the step out by itself
            check_gradients(norm, self._bare, self.step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return values


def check_takes_targets(model: nn.Module) -> None:
    """Raise TrainingError for a model that cannot be called as `model(images, targets)`: no detector of this kind."""
    try:
        inspect.signature(unwrapped(model).forward).bind([], [])
    except TypeError as error:
        raise TrainingError(
            "the model takes no targets in training",
            seen=f"{type(unwrapped(model)).__name__}.forward: {error}",
            expected="model(images, targets), as torchvision's detectors are called",
            mend=_OWN_SCRIPT,
        ) from error


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of parameters and statistics; young, it forgets faster: it keeps min(decay, (1 + n) / (10 + n)).

    The ramp is that of TensorFlow's ExponentialMovingAverage.
    """

    def average(old: Any, new: Any, count: Any) -> None:
        number = float(count)
        keep = min(decay, (1 + number) / (10 + number))
        if old[0].is_floating_point():
            torch._foreach_lerp_(old, new, 1 - keep)
            return
        for before, now in zip(old, new, strict=True):  # counters are not averaged
            before.copy_(now)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def _moved(target: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}


def _losses(outputs: Any, model: nn.Module) -> dict[str, Tensor]:
    losses = dict(outputs) if isinstance(outputs, Mapping) else {}
    if losses and all(isinstance(value, Tensor) and value.ndim == 0 for value in losses.values()):
        return losses
    raise TrainingError(
        "the model returns no losses in training",
        seen=f"{type(outputs).__name__} from {type(model).__name__}",
        expected="a dict of scalars from model(images, targets), as torchvision's detectors return",
        mend=_OWN_SCRIPT,
    )
