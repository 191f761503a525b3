"""The conformance kit of the pruning methods: targets, exactness, resuming; and each score against a sum by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from effp_fx import importance
from effp_fx.errors import MethodError, NameNotFoundError, RegistrationError
from effp_fx.groups import ChannelGroup
from effp_fx.methods import EFFP, METHODS, Budget, EagleEye, Outcome, find_method, register_method
from effp_fx.methods.channel_values import filters, magnitudes
from effp_fx.methods.chex import CHEX, Exchange, beyond, leverage
from effp_fx.methods.eagleeye import draw
from effp_fx.methods.group_fisher import mask_gradients
from effp_fx.methods.hrank import ranks
from effp_fx.methods.oto import OTO, HalfSpace
from effp_fx.methods.problem import Problem
from effp_fx.methods.ride import evenly
from effp_fx.methods.slimming import Penalty
from effp_fx.methods.soft_masking import products
from effp_fx.methods.uniform import uniform_mask
from effp_fx.session.rehearsal import rehearse
from tests.hand_made import chain
from tests.method_run import BUDGET, EPOCHS, CutOff, Tiny, batch, loss_of, net, posed

PRUNING = [name for name in METHODS if name != "dense"]
TWO_SESSIONS = {"l1", "gamma", "hrank", "eagleeye", "slimming", "tcfp", "group_fisher", "torch_pruning"}
MASKING = ["group_fisher", "oto", "chex", "soft_masking", "effp_no_regrow", "effp"]
"""Those that leave the channels that are off at zero in the model that they train."""


_TRACED: dict[Any, Any] = {}


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The analysis does not depend on the weights, and nothing changes it: one for all tests of a net and targets."""

    def once(network: nn.Module, example: Any, targets: Any, *rest: Any) -> Any:
        key = type(network).__name__, targets
        if key not in _TRACED:
            _TRACED[key] = rehearse(network, example, targets, *rest)
        return _TRACED[key]

    monkeypatch.setattr("effp_fx.methods.problem.rehearse", once)
    monkeypatch.setattr("effp_fx.session.session.rehearse", once)


def brisk(name: str) -> Any:
    """The method with fewer updates, where it has some: each searches for a plan."""
    method: Any = find_method(name)
    if isinstance(method, EFFP):
        return EFFP({**method.options, "updates": 4, "start": 0.05})
    if isinstance(method, EagleEye):  # in a net this small few draws come so near
        return EagleEye(candidates=3, tolerance=0.03)
    return replace(method, updates=4) if hasattr(method, "updates") else method


def counted(model: nn.Module) -> tuple[float, float]:
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(batch(0, 2)[0])
    return counter.get_total_flops(), sum(value.numel() for value in model.parameters())


def group_of(problem: Problem, layer: str) -> ChannelGroup:
    return next(group for group in problem.analysis.groups if layer in group.layers)


class Pictures(Tiny):
    """Trains nothing."""

    def fit(self, *_: Any) -> None:
        return None


def of(problem: Problem, scores: Any, layer: str) -> Any:
    group = group_of(problem, layer)
    return scores[group.start : group.stop]


@pytest.mark.parametrize("name", PRUNING)
def test_a_method_meets_both_targets_with_the_epochs_it_has_and_lowers_exactly(name: str) -> None:
    model, trainer = net(), Tiny()
    dense = counted(net())
    found: Outcome = brisk(name)(model, trainer, BUDGET)
    assert sum(trainer.asked) == EPOCHS and len(trainer.asked) == (2 if name in TWO_SESSIONS else 1)
    assert counted(found.model) == (found.flops[1], found.params[1]) and dense == (found.flops[0], found.params[0])
    shares = found.flops[1] / dense[0], found.params[1] / dense[1]
    assert shares[0] <= 0.5 and shares[1] <= 0.55
    # A channel of this net is up to 4 % of the FLOPs; Torch-Pruning takes steps of several.
    used = sorted((shares[0] / 0.5, shares[1] / 0.55))
    assert used[1] > (0.75 if name == "torch_pruning" else 0.88)
    assert used[0] > 0.8 or name in ("torch_pruning", "uniform", "eagleeye")  # which know of one number only
    assert found.error is None or found.error < 1e-9
    if name not in MASKING:
        return
    images, small = batch(7)[0].double(), found.model.double().eval()
    masked = model.double().eval()(images)
    torch.testing.assert_close(small(images), masked, rtol=1e-9, atol=1e-9)
    assert sum(value.numel() for value in small.parameters()) < sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("name", [name for name in METHODS if name != "torch_pruning"])
def test_a_method_that_was_cut_off_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = brisk(name)(net(), Tiny(tmp_path / "whole"), BUDGET).model.state_dict()
    until = 3 if name in TWO_SESSIONS else 2
    with pytest.raises(CutOff):
        brisk(name)(net(), Tiny(tmp_path / "cut", until=until), BUDGET)
    again = Tiny(tmp_path / "cut")
    resumed = brisk(name)(net(), again, BUDGET).model.state_dict()
    assert {key: value.shape for key, value in resumed.items()} == {key: value.shape for key, value in whole.items()}
    differing = [key for key, value in whole.items() if not torch.equal(value, resumed[key])]
    assert not differing


def test_the_dense_network_is_left_whole() -> None:
    trainer = Tiny()
    found = find_method("dense")(net(), trainer, BUDGET)
    assert found.flops[0] == found.flops[1] == counted(found.model)[0] and trainer.asked == [EPOCHS]


def test_names_are_known_and_taken_once_and_two_sessions_need_two_epochs() -> None:
    with pytest.raises(NameNotFoundError, match="no method is named 'magic'") as caught:
        find_method("magic")
    assert "dense, uniform, l1" in str(caught.value)
    with pytest.raises(RegistrationError, match="a method named 'effp' exists already"):
        register_method("effp", METHODS["effp"])
    with pytest.raises(MethodError, match="needs an epoch for each"):
        Budget(1).halves()
    assert Budget(5).halves() == (2, 3)


def test_torch_pruning_says_what_it_cannot_do() -> None:
    shuffled = nn.Sequential(nn.Conv2d(3, 32, 3), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 5, 1))
    with pytest.raises(MethodError, match="Torch-Pruning cannot prune this model"):
        find_method("torch_pruning")(shuffled, Pictures(), Budget(2, flops=0.3))


def test_updates_lie_evenly_and_there_is_always_one() -> None:
    assert evenly(100, 0.1, 0.5, 5) == (10, 20, 30, 40, 50)
    assert evenly(3, 0.0, 0.5, 20) == (1,) and evenly(10, 0.0, 0.3, 20) == (1, 2, 3)


def test_uniform_keeps_the_same_share_of_every_group() -> None:
    problem = posed()
    keep = uniform_mask(problem)
    shares = [keep[group.start : group.stop].mean() for group in problem.analysis.groups]
    assert max(shares) - min(shares) < 0.1 and problem.fits(keep)
    for group in problem.analysis.groups:  # one channel more of every group is too much
        first_off = group.start + int(keep[group.start : group.stop].sum())
        keep[first_off] = True
    assert not problem.fits(keep)


def test_a_threshold_keeps_what_is_above_it_in_all_layers() -> None:
    problem = posed(budget=Budget(4, flops=0.5))
    scores = np.random.default_rng(0).uniform(0.0, 1.0, problem.analysis.channels)
    keep = problem.above_threshold(scores)
    assert scores[keep].min() > scores[~keep].max() and problem.fits(keep)
    keep[np.flatnonzero(~keep)[np.argmax(scores[~keep])]] = True
    assert not problem.fits(keep)


def test_a_threshold_leaves_every_group_half_of_a_uniform_width() -> None:
    problem = posed(budget=Budget(4, flops=0.5))
    group = max(problem.analysis.groups, key=lambda group: group.channels)
    scores = np.random.default_rng(0).uniform(0.5, 1.0, problem.analysis.channels)
    scores[group.start : group.stop] *= 0.01
    keep = problem.above_threshold(scores)
    uniform = uniform_mask(problem)[group.start : group.stop].mean()
    assert keep[group.start : group.stop].sum() == np.ceil(uniform / 2 * group.channels) and problem.fits(keep)


@pytest.mark.parametrize("targets", [(0.5, 0.5), (0.5, 0.4), (0.4, 0.5)])
def test_of_two_targets_a_threshold_uses_both(targets: tuple[float, float]) -> None:
    analysis = chain([48, 64, 96], positions=[64, 16, 4]).analysis()
    found: Any = SimpleNamespace(analysis=analysis)
    problem = Problem(nn.Identity(), nn.Identity(), "", found, Budget(4, flops=targets[0], params=targets[1]))
    scores = np.random.default_rng(0).uniform(0.2, 1.8, analysis.channels)
    keep = problem.above_threshold(scores)
    shares = [float(cost(keep)) / cost.dense for cost in problem.costs.values()]
    assert all(target - 0.05 < share <= target for share, target in zip(shares, targets, strict=True))
    for group in analysis.groups:  # within a group the order is that of the scores
        part = slice(group.start, group.stop)
        assert scores[part][keep[part]].min() > scores[part][~keep[part]].max(initial=0.0)


def test_magnitudes_are_mean_gammas_and_norms_stand_in() -> None:
    model = net()
    problem = posed(model)
    found = magnitudes(problem.analysis, problem.tensors)
    one, two = (model.get_parameter(f"{name}.1.weight").detach().abs().numpy() for name in ("stem", "block"))
    np.testing.assert_allclose(of(problem, found, "block.0"), (one + two) / 2, rtol=1e-6)
    one, two = (model.get_parameter(f"deep.{index}.weight").detach().abs().numpy() for index in (1, 4))
    np.testing.assert_allclose(of(problem, found, "deep.0"), (one + two) / 2, rtol=1e-6)
    norms = model.get_parameter("plain.weight").detach().flatten(1).norm(dim=1).numpy()
    plain = of(problem, found, "plain")
    np.testing.assert_allclose(plain / plain.mean(), norms / norms.mean(), rtol=1e-6)


def test_l1_is_the_sum_of_the_filters_that_a_sum_couples() -> None:
    model = net()
    problem = posed(model)
    found = of(problem, importance.score(problem.analysis, model, "l1"), "block.0")
    sums = sum(
        np.abs(model.get_parameter(f"{name}.0.weight").detach().numpy()).sum((1, 2, 3)) for name in ("stem", "block")
    )
    np.testing.assert_allclose(found, sums / sums.mean(), rtol=1e-5)


def test_slimming_adds_the_sign_of_gamma_as_strongly_as_is_asked() -> None:
    model = net()
    problem = posed(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rider = Penalty(problem, optimizer, 10, pressure=0.5)
    loss_of(model, *batch(0)).backward()
    names = [name for name, value in model.named_parameters() if name.endswith(".1.weight") or name == "deep.4.weight"]
    before = {name: model.get_parameter(name).grad.clone() for name in names}  # type: ignore[union-attr]
    rider.before_step()
    mean = torch.cat(list(before.values())).abs().mean()
    for name in names:
        value = model.get_parameter(name)
        assert value.grad is not None
        torch.testing.assert_close(value.grad, before[name] + 0.5 * mean * value.detach().sign())


def test_ranks_are_those_of_the_maps_after_their_activation() -> None:
    model = net()
    problem = posed(model)
    seen: dict[str, Tensor] = {}
    batches = [batch(number, 3) for number in range(2)]
    with torch.no_grad():
        for images, _ in batches:
            model.eval()
            x = model.stem(images)  # type: ignore[operator]
            x = torch.relu(x + model.block(x))  # type: ignore[operator]
            y = model.deep(x)  # type: ignore[operator]
            plain = torch.relu(model.plain(y))  # type: ignore[operator]
            for name, value in (("deep.0", y), ("plain", plain)):
                seen[name] = torch.cat([seen[name], value]) if name in seen else value
    found = ranks(problem, batches)
    for name, maps in seen.items():
        by_hand = np.array([[np.linalg.matrix_rank(one.numpy()) for one in image] for image in maps]).mean(0)
        np.testing.assert_allclose(of(problem, found, name), by_hand)


def test_leverage_and_what_is_beyond_the_kept_filters() -> None:
    weight = np.random.default_rng(0).normal(size=(20, 6))
    values, vectors = np.linalg.eigh(weight.T @ weight)
    leading = vectors[:, np.argsort(values)[-3:]]
    np.testing.assert_allclose(leverage(weight, 3), np.sqrt((leading**2).sum(1)), rtol=1e-9)
    kept = np.array([True, True, False, True, False, False])
    rest = weight - weight[:, kept] @ np.linalg.lstsq(weight[:, kept], weight, rcond=None)[0]
    np.testing.assert_allclose(beyond(weight, kept), np.linalg.norm(rest, axis=0), atol=1e-9)


def test_filters_of_coupled_layers_lie_on_top_of_each_other() -> None:
    model = net()
    problem = posed(model)
    group = group_of(problem, "block.0")
    rows = [model.get_parameter(f"{name}.0.weight").detach().flatten(1).numpy().T for name in ("stem", "block")]
    found = filters(problem.analysis, problem.tensors, group)
    np.testing.assert_allclose(sorted(found.sum(0)), sorted(np.concatenate(rows).sum(0)), rtol=1e-5)
    assert found.shape == (27 + 108, 12)


def test_chex_regrows_less_and_less_and_ends_at_the_targets() -> None:
    model, counts = net(), []
    problem = posed(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    rider = Exchange(problem, optimizer, 20, CHEX(updates=5, regrow=0.6))
    for step in range(20):
        optimizer.zero_grad()
        loss_of(model, *batch(step)).backward()
        optimizer.step()
        counts.append(int(rider.mask.keep.sum()))
    at = [counts[step - 1] for step in rider.update_steps]
    assert at == sorted(at, reverse=True) and at[0] > at[-1] and len(at) == 5
    assert problem.fits(rider.mask.keep) and not problem.fits(problem.analysis.keep_all())


class Masked(nn.Module):
    """The small net with a mask on what each group hands out, or on what reads it: for gradients by hand."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.own: Any = model
        self.block, self.deep, self.plain = (nn.Parameter(torch.ones(size, 1, 1)) for size in (12, 16, 14))

    def forward(self, x: Tensor) -> Any:
        own = self.own
        x = torch.relu(own.stem[1](own.stem[0](x)) * self.block)
        x = torch.relu(x + own.block(x) * self.block)
        x = own.deep[2](own.deep[1](own.deep[0](x)) * self.deep)
        x = own.deep[5](own.deep[4](own.deep[3](x)) * self.deep)
        return own.head(torch.relu(own.plain(x) * self.plain).mean((2, 3)))


def test_group_fisher_has_the_gradient_of_a_mask_that_coupled_layers_share() -> None:
    model = net()
    problem = posed(model)
    loss_of(model, *batch(3)).backward()
    found = mask_gradients(problem.analysis, problem.tensors)
    masked = Masked(net())
    loss_of(masked, *batch(3)).backward()
    for layer in ("block", "deep", "plain"):
        by_hand = masked.get_parameter(layer).grad
        assert by_hand is not None
        own = of(problem, found, layer if layer == "plain" else f"{layer}.0")
        np.testing.assert_allclose(own, by_hand.flatten().numpy(), atol=1e-6)


def test_soft_masking_has_the_gradient_of_a_mask_on_what_is_read() -> None:
    model = net()
    problem = posed(model)
    loss_of(model, *batch(3)).backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    found = products(problem.analysis, dict(model.named_parameters()), gradients)
    other: Any = net()
    mask = torch.ones(14, requires_grad=True)
    x = other.stem(batch(3)[0])
    x = other.deep(torch.relu(x + other.block(x)))
    value = nn.functional.cross_entropy(other.head(torch.relu(other.plain(x)).mean((2, 3)) * mask), batch(3)[1])
    by_hand = torch.autograd.grad(value, mask)[0].abs().numpy()
    np.testing.assert_allclose(of(problem, found, "plain"), by_hand, atol=1e-6)


def test_soft_masking_lets_what_is_masked_go_on_learning() -> None:
    from effp_fx.methods.soft_masking import SoftMask

    model = net()
    problem = posed(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    rider = SoftMask(problem, optimizer, (1, 3), 5)
    dense = []
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, *batch(step)).backward()
        optimizer.step()
        dense.append(rider.dense["head.weight"].clone())
    off = ~of(problem, rider.keep, "plain")
    assert off.any() and not model.get_parameter("head.weight")[:, torch.from_numpy(off)].any()
    assert not torch.equal(dense[0], dense[1]) and torch.equal(dense[2], dense[4])
    assert dense[1][:, torch.from_numpy(off)].abs().min() > 0


def test_oto_adds_the_gradient_of_the_norms_and_projects_what_turned_round() -> None:
    model = net()
    problem = posed(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    rider = HalfSpace(problem, optimizer, 20, OTO(strength=0.5, middle=0.05, end=0.9))
    loss_of(model, *batch(0)).backward()
    names = ("plain.weight", "plain.bias")
    before = {name: model.get_parameter(name).grad.clone() for name in names}  # type: ignore[union-attr]
    rider.before_step()
    weight, bias = (model.get_parameter(name).detach() for name in names)
    norms = torch.cat([weight.flatten(1), bias[:, None]], 1).norm(dim=1)
    penalty = model.get_parameter("plain.bias").grad - before["plain.bias"]  # type: ignore[operator]
    assert rider.shrinking.length is not None
    torch.testing.assert_close(penalty, 0.5 * rider.shrinking.length * bias / norms)
    rider.step = 2  # phase 2
    rider.before_step()
    with torch.no_grad():
        weight[3] *= -0.1
        bias[3] *= -0.1
    rider.after_step()
    start = group_of(problem, "plain").start
    assert rider.projected == 1 and np.flatnonzero(~rider.mask.keep).tolist() == [start + 3]
    assert not model.get_parameter("plain.weight")[3].any()


def test_candidates_are_within_the_tolerance_and_differ() -> None:
    problem = posed()
    found = draw(problem, EagleEye(candidates=4, tolerance=0.02))
    assert len(found) == 4 and len({keep.tobytes() for keep in found}) == 4
    for keep in found:
        plan = {group.name: keep[group.start : group.stop].sum() for group in problem.analysis.groups}
        wide = [int(plan[group_of(problem, layer).name]) for layer in ("block.0", "deep.0", "plain")]
        a, b, c = wide
        flops = 2 * 64 * (27 * a + 9 * a * a + a * b + 9 * b + 9 * b * c) + 2 * 5 * c
        dense = 2 * 64 * (27 * 12 + 9 * 144 + 12 * 16 + 9 * 16 + 9 * 16 * 14) + 2 * 5 * 14
        params = 27 * a + 3 * a + 9 * a * a + 2 * a + a * b + 4 * b + 9 * b + 9 * b * c + c + 5 * c + 5
        whole = 27 * 12 + 36 + 9 * 144 + 24 + 192 + 64 + 144 + 9 * 224 + 14 + 70 + 5
        short = min(0.5 - flops / dense, 0.55 - params / whole)
        assert 0 <= short <= 0.02
