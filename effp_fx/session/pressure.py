"""Evaluates the pruning loss's graph, and adds alpha times its gradient to that of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from effp_fx.cost import Cost
from effp_fx.groups import Analysis
from effp_fx.importance import Floats
from effp_fx.lowering import Targets
from effp_fx.passes.pruning_loss import REFERENCE, PruningLoss
from effp_fx.session.checks import check_finite, diverged
from effp_fx.session.gain import Gain
from effp_fx.session.options import Options
from effp_fx.sites import sites_of


class Pressure:
    """The pruning loss of one session, and how strongly it presses.

    Args:
        module: the graph of `passes.PruningLoss` with `alone=True`; it reads the user's own parameters.
        sites: the trainable parameters that magnitudes are read off, by name.
        measured: those of them whose drift is set: the gammas, where there are any.
        options: alpha, or how far to press.
        steps: how many steps it presses.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        sites: Mapping[str, Tensor],
        measured: Mapping[str, Tensor],
        options: Options,
        steps: int,
    ) -> None:
        self.module = module
        self.sites, self.measured = dict(sites), dict(measured)
        self.own_term = False
        """Set where the user adds the term to the loss, so that no gradient is added here."""
        self.last_alpha = options.alpha or 0.0
        self.gain = Gain(self.measured)
        self._alpha, self._drift = options.alpha, options.drift / steps

    def refer_to_groups(self, analysis: Analysis) -> None:
        """Count magnitudes from the mean that each group has now."""
        reference = self._reference().fill_(1.0)
        magnitudes = self.value()[1]
        for group in analysis.groups:
            mean = magnitudes[group.start : group.stop].mean()
            reference[group.start : group.stop] = torch.where(mean > 0, mean, torch.ones_like(mean))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {
            "reference": self._reference().clone(),
            "gain": self.gain.state_dict(),
            "last_alpha": self.last_alpha,
            "own_term": self.own_term,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take a state over."""
        self._reference().copy_(saved["reference"])
        self.last_alpha, self.own_term = saved["last_alpha"], saved["own_term"]
        self.gain.load_state_dict(saved["gain"])

    def _reference(self) -> Tensor:
        return self.module.get_buffer(REFERENCE)

    def value(self) -> tuple[float, Tensor]:
        """L_prune now, and the magnitudes of the channels (K) over their reference."""
        with torch.no_grad():
            loss, *_, magnitudes = self.module()
        return float(loss), magnitudes

    def magnitudes(self) -> Floats:
        """Of the channels (K), over their reference."""
        found: Floats = self.value()[1].cpu().numpy()
        return found

    def check_finite(self, step: int) -> None:
        """Raise DivergenceError where a weight that magnitudes are read off is NaN or infinite."""
        if not bool(self.value()[1].isfinite().all()):
            check_finite(self.sites, step)

    def term(self) -> Tensor:
        """alpha * L_prune, differentiable in the parameters: a float64 scalar."""
        self.own_term = True
        loss = self.module()[0]
        if self._alpha is None and loss.requires_grad:
            self._set_alpha(self._slopes(loss, keep_graph=True))
        scaled: Tensor = self.last_alpha * loss
        return scaled

    def press(self, scale: Tensor | None, step: int, *, silent: bool) -> None:
        """Add alpha times the gradient of the pruning loss.

        Args:
            scale: by what a GradScaler has multiplied all other gradients; None: by nothing.
            step: optimizer steps taken so far, for messages.
            silent: add nothing, only look whether training diverges.

        Raises DivergenceError where the network's gradient is not finite; nothing has been added then.
        """
        gradients = {name: value.grad for name, value in self.sites.items() if value.grad is not None}
        compared = [gradients[name] for name in self.measured if name in gradients]
        if not compared:
            return
        if not math.isfinite(_absolute_sum(compared)):
            raise diverged(gradients, step)
        if silent or (not self._drift if self._alpha is None else not self._alpha):
            return
        if not self.own_term:
            self._add(gradients, scale)
        if self._alpha is None:
            self.gain.observe(scale)

    def _add(self, gradients: Mapping[str, Tensor], scale: Tensor | None) -> None:
        with torch.enable_grad():
            loss = self.module()[0]
        if not loss.requires_grad or float(loss.detach()) == 0:
            return
        slopes = self._slopes(loss)
        if self._alpha is None:
            self._set_alpha(slopes)
        weight = self.last_alpha if scale is None else self.last_alpha * float(scale)
        names = [name for name in slopes if name in gradients]
        with torch.no_grad():
            torch._foreach_add_(
                [gradients[name] for name in names],
                [slopes[name].to(gradients[name]) for name in names],
                alpha=weight,
            )

    def _slopes(self, loss: Tensor, *, keep_graph: bool = False) -> dict[str, Tensor]:
        # A user may freeze layers on the way.
        live = {name: value for name, value in self.sites.items() if value.requires_grad}
        found = torch.autograd.grad(loss, list(live.values()), retain_graph=keep_graph, allow_unused=True)
        return {name: value for name, value in zip(live, found, strict=True) if value is not None}

    def _set_alpha(self, slopes: Mapping[str, Tensor]) -> None:
        """So that a step, by the optimizer's gain, moves the gammas by the part of their size that one step is due."""
        compared = [slope for name, slope in slopes.items() if name in self.measured]
        size = self.gain.value * _absolute_sum(compared) if compared else 0.0
        if size > 0:
            self.last_alpha = self._drift * _absolute_sum([value.detach() for value in self.measured.values()]) / size


def _absolute_sum(tensors: Sequence[Tensor]) -> float:
    """Of all entries, in float32 at least: a sum of scaled gradients overflows half precision."""
    norms = torch._foreach_norm(list(tensors), 1, dtype=torch.promote_types(tensors[0].dtype, torch.float32))
    return float(torch.stack([norm.to(norms[0].device) for norm in norms]).sum())


def prepared(
    analysis: Analysis,
    costs: Mapping[str, Cost],
    targets: Targets,
    tensors: Mapping[str, Tensor],
    options: Options,
    steps: int,
) -> Pressure:
    """The pruning loss's graph over the user's parameters, magnitudes counted from what they are now.

    `analysis` has its graphs; `tensors` are the user's own parameters and buffers by name. It presses for `steps`
    steps.
    """
    trainable = {name for name, value in tensors.items() if value.requires_grad}
    sites = sites_of(analysis, trainable)
    step = PruningLoss(
        costs=costs,
        targets=targets.absolute(costs),
        sites=sites,
        reference=torch.ones(analysis.channels, dtype=torch.float64),
        tensors=tensors,
        threshold=options.threshold,
        alone=True,
    )
    module = step(analysis, analysis.graphs[0]).graph_module
    device = tensors[sites[0].tensor].device
    for name, constant in list(module.named_buffers(recurse=False)):
        if name not in tensors:  # the constants: what is the user's stays where it is
            setattr(module, name, constant.to(device))
    pressed = {site.tensor: tensors[site.tensor] for site in sites if site.tensor in trainable}
    gammas = {site.tensor for site in sites if site.is_gamma}
    measured = {name: value for name, value in pressed.items() if name in gammas} or pressed
    pressure = Pressure(module, pressed, measured, options, steps)
    pressure.refer_to_groups(analysis)
    return pressure
