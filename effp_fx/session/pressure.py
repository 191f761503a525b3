"""Evaluates the pruning loss's graph, and adds alpha times its gradient to that of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from effp_fx.groups import Analysis
from effp_fx.passes.pruning_loss import REFERENCE
from effp_fx.session.checks import diverged
from effp_fx.session.options import Options

_MEMORY = 0.9
"""How much of the running mean of the network's gradient an optimizer step leaves in place."""


class Pressure:
    """The pruning loss of one session, and how strongly it presses.

    Args:
        module: the graph of `passes.PruningLoss` with `alone=True`; it reads the user's own parameters.
        sites: the trainable parameters that magnitudes are read off, by name.
        measured: those of them over which gradients are compared: the gammas, where there are any.
        options: alpha, or how strongly to press.
    """

    def __init__(
        self, module: fx.GraphModule, sites: Mapping[str, Tensor], measured: Mapping[str, Tensor], options: Options
    ) -> None:
        self.module = module
        self.sites, self.measured = dict(sites), dict(measured)
        self.own_term = False
        """Set where the user adds the term to the loss, so that no gradient is added here."""
        self.last_alpha = options.alpha or 0.0
        self.mean_gradient: float | None = None
        self._alpha, self._pressure = options.alpha, options.pressure

    def refer_to_groups(self, analysis: Analysis) -> None:
        """Count magnitudes from the mean that each group has now."""
        magnitudes = self.value()[1]
        reference = self._reference()
        for group in analysis.groups:
            mean = magnitudes[group.start : group.stop].mean()
            reference[group.start : group.stop] = torch.where(mean > 0, mean, torch.ones_like(mean))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {
            "reference": self._reference().clone(),
            "mean_gradient": self.mean_gradient,
            "last_alpha": self.last_alpha,
            "own_term": self.own_term,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take a state over."""
        self._reference().copy_(saved["reference"])
        self.mean_gradient, self.last_alpha = saved["mean_gradient"], saved["last_alpha"]
        self.own_term = saved["own_term"]

    def _reference(self) -> Tensor:
        return self.module.get_buffer(REFERENCE)

    def value(self) -> tuple[float, Tensor]:
        """L_prune now, and the magnitudes of the channels (K) over their reference."""
        with torch.no_grad():
            loss, *_, magnitudes = self.module()
        return float(loss), magnitudes

    def term(self) -> Tensor:
        """alpha * L_prune, differentiable in the parameters: a float64 scalar."""
        self.own_term = True
        loss = self.module()[0]
        if self._alpha is None and self.mean_gradient is not None:
            self._measure(self._slopes(loss, keep_graph=True))
        scaled: Tensor = self.last_alpha * loss
        return scaled

    def press(self, scale: Tensor | None, step: int) -> None:
        """Add alpha times the gradient of the pruning loss.

        Args:
            scale: by what a GradScaler has multiplied all other gradients; None: by nothing.
            step: optimizer steps taken so far, for messages.

        Raises DivergenceError where the network's gradient is not finite; nothing has been added then.
        """
        gradients = {name: value.grad for name, value in self.sites.items() if value.grad is not None}
        compared = [value.grad for value in self.measured.values() if value.grad is not None]
        if not compared:
            return
        own = float(torch.nn.utils.get_total_norm(compared, norm_type=1.0))
        if not math.isfinite(own):
            raise diverged(gradients, step)
        own = own if scale is None else own / float(scale)
        before = own if self.mean_gradient is None else self.mean_gradient
        self.mean_gradient = _MEMORY * before + (1 - _MEMORY) * own
        if self.own_term or (self._alpha is None and not self._pressure) or self._alpha == 0:
            return
        with torch.enable_grad():
            loss = self.module()[0]
        if not loss.requires_grad or float(loss.detach()) == 0:
            return
        slopes = self._slopes(loss)
        if self._alpha is None:
            self._measure(slopes)
        weight = self.last_alpha if scale is None else self.last_alpha * float(scale)
        with torch.no_grad():
            for name in slopes.keys() & gradients.keys():
                gradients[name].add_(slopes[name].to(gradients[name]), alpha=weight)

    def _slopes(self, loss: Tensor, *, keep_graph: bool = False) -> dict[str, Tensor]:
        found = torch.autograd.grad(loss, list(self.sites.values()), retain_graph=keep_graph, allow_unused=True)
        return {name: value for name, value in zip(self.sites, found, strict=True) if value is not None}

    def _measure(self, slopes: Mapping[str, Tensor]) -> None:
        """Set alpha so that both gradients have the ratio that is asked for, in the sum of their absolute values."""
        compared = [slope for name, slope in slopes.items() if name in self.measured]
        size = float(torch.nn.utils.get_total_norm(compared, norm_type=1.0)) if compared else 0.0
        if size > 0 and self.mean_gradient is not None:
            self.last_alpha = self._pressure * self.mean_gradient / size
