"""The passes of the session: indicators in the graph, and the pruning loss against sums and slopes made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from effp_fx import binding, cost, graph, models, trial
from effp_fx.groups import Analysis, Graph
from effp_fx.inputs import Example
from effp_fx.models.randomise import randomise
from effp_fx.passes import base
from effp_fx.passes.insert_indicators import INDICATORS, InsertIndicators
from effp_fx.passes.mask import Mask
from effp_fx.passes.pruning_loss import PruningLoss
from effp_fx.plan import from_keep
from effp_fx.sites import sites_of
from effp_fx.tracing import Tracing, trace
from tests.exactness import EXACT, distance
from tests.session_run import Silu, attached, net, sgd, train
from tests.untouched import untouched

THRESHOLD = 0.1


def traced(spec: str, dtype: torch.dtype = torch.float64) -> Tracing:
    model = models.build(spec).model
    randomise(model)
    shape = models.example_for(model).tensors()[0].shape if spec.startswith("effp") else (1, 3, 32, 32)
    return trace(model.to(dtype), Example((torch.rand(shape).to(dtype),)))


def evaluation(analysis: Analysis) -> Graph:
    return next(part for part in analysis.graphs if not part.capture.train)


def outputs(module: fx.GraphModule, example: Example) -> list[Tensor]:
    with torch.no_grad():
        return list(module(*example.tensors()))


@pytest.mark.parametrize("spec", ["effp:residual", "effp:no_norm", "effp:c2f", "effp:multiplier", "effp:rep_vgg"])
def test_indicators_of_zero_and_one_are_the_mask(spec: str) -> None:
    found = traced(spec)
    part, keep = evaluation(found.analysis), trial.trial_keep(found.analysis, 3)
    with untouched(found.model, part.capture.graph_module):
        masked, indicated = base.run([Mask(keep), InsertIndicators()], found.analysis, part)
        module = indicated.graph_module
        dense = outputs(part.capture.graph_module, found.example)
        assert distance(outputs(module, found.example), dense) < EXACT
        held = module.get_buffer(INDICATORS)
        held.copy_(torch.from_numpy(keep))
        assert distance(outputs(module, found.example), outputs(masked.graph_module, found.example)) < EXACT
        assert distance(outputs(module, found.example), dense) > 1e-6, "the mask changed nothing, which proves nothing"
        held.requires_grad_()
        total = torch.stack([value.square().sum() for value in module(*found.example.tensors())]).sum()
        slope = torch.autograd.grad(total, held)[0]
    assert slope.isfinite().all()
    assert slope.count_nonzero() > len(held) // 3


def test_indicators_leave_half_precision_as_it_is() -> None:
    found = traced("effp:chain", torch.bfloat16)
    module = InsertIndicators()(found.analysis, evaluation(found.analysis)).graph_module
    assert outputs(module, found.example)[0].dtype == torch.bfloat16


class Alike(nn.Module):
    """Two weights whose names are one when dots become underscores."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_b = nn.Module(), nn.Conv2d(3, 8, 1)
        self.a.b_weight = nn.Parameter(torch.randn(6, 8, 1, 1))
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.conv2d(self.a_b(x).relu(), self.a.b_weight).relu())


def test_indicators_of_names_that_are_nearly_the_same() -> None:
    found = trace(Alike().double(), Example((torch.rand(2, 3, 8, 8, dtype=torch.float64),)))
    part, keep = evaluation(found.analysis), trial.trial_keep(found.analysis, 3)
    module = InsertIndicators()(found.analysis, part).graph_module
    module.get_buffer(INDICATORS).copy_(torch.from_numpy(keep))
    masked = Mask(keep)(found.analysis, part).graph_module
    assert distance(outputs(module, found.example), outputs(masked, found.example)) < EXACT


def pruning_loss(found: Tracing, targets: dict[str, float], *, alone: bool) -> PruningLoss:
    tensors = {**dict(found.model.named_parameters()), **dict(found.model.named_buffers())}
    trainable = {name for name, value in tensors.items() if value.requires_grad}
    return PruningLoss(
        costs={"flops": cost.flops(found.analysis), "params": cost.params(found.analysis)},
        targets=targets,
        sites=sites_of(found.analysis, trainable),
        reference=torch.ones(found.analysis.channels, dtype=torch.float64),
        tensors=tensors,
        threshold=THRESHOLD,
        alone=alone,
    )


def test_both_passes_as_text(golden: Callable[[str, str], None]) -> None:
    torch.manual_seed(0)
    found = trace(Silu(4).eval(), Example((torch.rand(1, 3, 8, 8),)))
    part = evaluation(found.analysis)
    steps = [InsertIndicators(), pruning_loss(found, {"flops": 1000.0}, alone=True)]
    texts = [graph.to_text(part.capture.graph_module)]
    texts += [graph.to_text(result.graph_module) for result in base.run(steps, found.analysis, part)]
    golden("passes_session", "\n\n".join(sum(zip(("dense", "indicators", "pruning loss"), texts, strict=True), ())))


def with_small_gammas(model: nn.Module, part: float = 0.4) -> nn.Module:
    """Some gammas (filters, where there are none) of each layer below the threshold, their betas zero too."""
    generator = torch.Generator().manual_seed(3)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    layers = norms or [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for layer in layers:
            small = torch.rand(len(layer.weight), generator=generator) < part
            small[0] = False
            layer.weight[small] *= 1e-6
            if layer.bias is not None:
                layer.bias[small] = 0
    return model


def walked(model: nn.Module, image: Tensor) -> tuple[float, float]:
    """(F_pruned, P_pruned) of a chain of convolution, norm, activation, a mean and a linear layer, layer by layer.

    A filter counts while its gamma (where there is no norm: its own L2 norm) is at least the threshold.
    """
    flops = params = 0.0
    alive, side = 3, image.shape[-1]
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.BatchNorm2d):
            params += 2 * alive
            continue
        if isinstance(layer, nn.Linear):
            flops += 2 * alive * layer.out_features * len(image)
            params += alive * layer.out_features + layer.out_features
            continue
        norm = layers[index + 1] if isinstance(layers[index + 1], nn.BatchNorm2d) else None
        size = layer.weight.flatten(1).norm(dim=1) if norm is None else norm.weight.abs()
        out, side = int((size >= THRESHOLD).sum()), side // layer.stride[0]
        flops += 2 * 9 * alive * out * side * side * len(image)
        params += 9 * alive * out + (out if layer.bias is not None else 0)
        alive = out
    return flops, params


@pytest.mark.parametrize("name", ["chain", "silu", "no_norm"])
def test_pruned_costs_are_those_of_a_walk_over_the_layers(name: str) -> None:
    model = with_small_gammas(net(name)).eval()
    image = torch.rand(2, 3, 16, 16)
    found = trace(model, Example((image,)))
    flops, params = walked(model, image)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    dense = counter.get_total_flops(), sum(value.numel() for value in model.parameters())
    targets = {"flops": 0.3 * dense[0], "params": 0.2 * dense[1]}
    module = pruning_loss(found, targets, alone=True)(found.analysis, evaluation(found.analysis)).graph_module
    loss, f_pruned, p_pruned, _ = module()
    assert (f_pruned.item(), p_pruned.item()) == (flops, params)
    assert (flops, params) < dense, "nothing was below the threshold, which proves nothing"
    assert loss.item() == pytest.approx((flops / dense[0] - 0.3) + (params / dense[1] - 0.2))


@pytest.mark.parametrize(
    "spec", ["effp:residual?width=8", "effp:inverted_residual?width=8", "torchvision:shufflenet_v2_x0_5"]
)
def test_pruned_costs_are_those_of_the_network_without_them(spec: str) -> None:
    """Coupled gammas count by their mean; cut off what is below the threshold, and count with torch's counter."""
    found = traced(spec, torch.float32)
    keep = trial.trial_keep(found.analysis, 3)
    with torch.no_grad():
        for name, dims in found.analysis.tensors.items():
            for dim in dims.masked if dims.is_parameter else ():
                rows = torch.from_numpy(np.flatnonzero((dims.dims[dim] >= 0) & ~keep[dims.dims[dim]]))
                found.model.get_parameter(name).index_fill_(dim, rows, 0.0)
            if name.endswith("weight") and len(dims.shape) == 1:  # the others well above it
                value = found.model.get_parameter(name)
                value.copy_(torch.where(value == 0, value, value.abs() + THRESHOLD))
    step = pruning_loss(found, {"flops": 1.0}, alone=True)
    _, f_pruned, p_pruned, magnitudes = step(found.analysis, evaluation(found.analysis)).graph_module()
    assert ((magnitudes >= THRESHOLD).numpy() == keep).all()
    small = binding.apply(found.model, from_keep(found.analysis, keep, found.attributes(keep), summary={}))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.eval()(*found.example.args)
    assert f_pruned.item() == counter.get_total_flops()
    assert p_pruned.item() == sum(value.numel() for value in small.parameters())


def test_the_slope_is_the_marginal_cost_and_off_at_the_target() -> None:
    """Straight through: dL/dgamma is sign(gamma) times the channel's marginal cost over the dense cost."""
    model = with_small_gammas(net("chain")).eval()
    with torch.no_grad():
        model.get_parameter("body.1.1.weight")[1] *= -1
    found = trace(model, Example((torch.rand(2, 3, 16, 16),)))
    part, costs = evaluation(found.analysis), cost.flops(found.analysis)
    module = pruning_loss(found, {"flops": 0.1 * costs.dense}, alone=True)(found.analysis, part).graph_module
    loss, pruned, _, magnitudes = module()
    gammas = {f"body.{i}.1.weight": model.get_parameter(f"body.{i}.1.weight") for i in range(3)}
    slopes = torch.autograd.grad(loss, list(gammas.values()))
    marginal = costs.marginal((magnitudes.detach() >= THRESHOLD).numpy())
    for (name, value), slope in zip(gammas.items(), slopes, strict=True):
        expected = marginal[found.analysis.tensors[name].dims[0]] / costs.dense * value.detach().sign().numpy()
        assert slope.numpy() == pytest.approx(expected, rel=1e-5)
    at = {"flops": pruned.item()}
    loss = pruning_loss(found, at, alone=True)(found.analysis, part).graph_module()[0]
    assert loss.item() == 0
    assert all(not slope.any() for slope in torch.autograd.grad(loss, list(gammas.values())))
    just = {"flops": pruned.item() - 1}
    loss = pruning_loss(found, just, alone=True)(found.analysis, part).graph_module()[0]
    assert loss.item() == pytest.approx(1 / costs.dense)


def test_the_network_with_its_pruning_loss() -> None:
    """Not alone, the loss is one more output of the network's own graph, over the graph's own weights."""
    found = traced("effp:residual")
    part = evaluation(found.analysis)
    step = pruning_loss(found, {"flops": 1.0, "params": 1.0}, alone=False)
    with untouched(found.model, part.capture.graph_module):
        whole = base.run([step], found.analysis, part)[0].graph_module
    *network, loss = outputs(whole, found.example)
    alone = pruning_loss(found, {"flops": 1.0, "params": 1.0}, alone=True)(found.analysis, part).graph_module
    assert distance(network, outputs(part.capture.graph_module, found.example)) < EXACT
    assert loss.item() == pytest.approx(alone()[0].item(), rel=1e-12)


def test_a_frozen_norm_is_stood_in_for_by_the_filters() -> None:
    model = net("chain")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    found = trace(model.eval(), Example((torch.rand(2, 3, 16, 16),)))
    step = pruning_loss(found, {"flops": 1.0}, alone=True)
    assert {site.tensor for site in step.sites} == {f"body.{index}.0.weight" for index in range(3)}
    *_, magnitudes = step(found.analysis, evaluation(found.analysis)).graph_module()
    weight = found.model.get_parameter("body.0.0.weight")
    channels = found.analysis.tensors["body.0.0.weight"].dims[0]
    assert magnitudes[channels].tolist() == pytest.approx(weight.flatten(1).norm(dim=1).tolist(), rel=1e-6)


def test_the_session_evaluates_that_graph() -> None:
    """Its loss, at every update, is the one that the pass gives for the same weights and reference."""
    model = net("chain")
    optimizer = sgd(model)
    session = attached(model, optimizer)
    assert isinstance(session._pressure.module, fx.GraphModule)
    assert type(session._pressure.module).__name__ == "PruningLoss"
    for _ in train(model, optimizer, range(5)):
        loss, magnitudes = session._pressure.value()
        hard = (magnitudes >= session.options.threshold).numpy()
        by_hand = [
            max(0.0, cost_(hard) / cost_.dense - target)
            for cost_, target in zip(session._costs.values(), (0.5, 0.5), strict=True)
        ]
        assert loss == pytest.approx(sum(by_hand), abs=1e-4)  # targets are whole numbers
