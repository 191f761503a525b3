"""Scores follow the parameters: coupled gammas, filter norms, and torch_pruning's classes as it applies them."""

from __future__ import annotations

from collections.abc import Mapping

import networkx
import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from effp_fx.errors import EffpError, NameNotFoundError, RegistrationError
from effp_fx.groups import Analysis, ChannelGroup, Slice, TensorDims
from effp_fx.importance import IMPORTANCES, register_importance, score, torch_pruning_importance


class Net(nn.Module):
    """Two coupled branches under one sum, then a layer of its own, then a linear layer over flattened positions."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.left_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.right, self.right_norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.head = nn.Linear(5 * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        both = self.left_norm(self.left(images)).relu() + self.right_norm(self.right(images)).relu()
        return self.head(self.up(self.plain(both).relu()).relu().flatten(1))


def net() -> Net:
    model = Net().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


GROUPS = {
    "left": (0, 8, (("left", 0, "out"), ("right", 0, "out"), ("plain", 1, "in")), ("left_norm", "right_norm")),
    "plain": (8, 14, (("plain", 0, "out"), ("up", 0, "in")), ()),
    "up": (14, 19, (("up", 1, "out"), ("head", 1, "in")), ()),
}


def analysis_of(model: Net) -> Analysis:
    """What tracing finds in Net, written by hand."""
    tensors: dict[str, TensorDims] = {}
    dims: dict[str, dict[int, np.ndarray]] = {name: {} for name in model.state_dict()}
    groups = []
    for name, (start, stop, weights, norms) in GROUPS.items():
        numbers = np.arange(start, stop)
        slices = [Slice(f"{layer}.weight", dim, role, 16 if layer == "head" else 1) for layer, dim, role in weights]
        slices += [
            Slice(f"{layer}.bias", 0, "carry", 1) for layer, _, role in weights if role == "out" and layer != "left"
        ]
        slices += [Slice(f"{norm}.{leaf}", 0, "carry", 1) for norm in norms for leaf in ("weight", "bias")]
        slices += [Slice(f"{norm}.{leaf}", 0, "stat", 1) for norm in norms for leaf in ("running_mean", "running_var")]
        for part in slices:
            dims[part.tensor][part.dim] = np.repeat(numbers, part.per_channel)
        groups.append(
            ChannelGroup(name, start, stop, tuple(slices), tuple(f"{norm}.weight" for norm in norms), (name,))
        )
    parameters = dict(model.named_parameters())
    for name, tensor in model.state_dict().items():
        tensors[name] = TensorDims(tuple(tensor.shape), dims[name], name in parameters, frozenset({0}))
    return Analysis(19, tuple(groups), tensors, (), (), (), networkx.DiGraph())


def over_mean(scores: Tensor) -> np.ndarray:
    values = scores.detach().numpy()
    return np.asarray(values / values.mean())


def test_gamma_combines_coupled_norms_and_falls_back_on_filter_norms() -> None:
    model = net()
    scores = score(analysis_of(model), model, "gamma")
    coupled = ((model.left_norm.weight**2 + model.right_norm.weight**2) / 2).sqrt()
    np.testing.assert_allclose(scores[:8], over_mean(coupled))
    np.testing.assert_allclose(scores[8:14], over_mean(model.plain.weight.flatten(1).norm(dim=1)))
    np.testing.assert_allclose(scores[14:], over_mean(model.up.weight.transpose(0, 1).flatten(1).norm(dim=1)))


def test_l1_and_l2_take_all_filters_that_make_a_channel() -> None:
    model = net()
    together = torch.cat([model.left.weight.flatten(1), model.right.weight.flatten(1)], dim=1)
    np.testing.assert_allclose(score(analysis_of(model), model, "l1")[:8], over_mean(together.abs().sum(1)))
    np.testing.assert_allclose(score(analysis_of(model), model, "l2")[:8], over_mean(together.norm(dim=1)))


def test_gammas_of_zero_everywhere_tell_nothing() -> None:
    model = net()
    nn.init.zeros_(model.left_norm.weight)
    nn.init.zeros_(model.right_norm.weight)
    assert score(analysis_of(model), model, "gamma")[:8].tolist() == [1.0] * 8


def test_a_frozen_norm_is_a_buffer_and_counts_all_the_same() -> None:
    model = net()
    expected = score(analysis_of(model), model, "gamma")
    for norm in (model.left_norm, model.right_norm):
        gamma = norm.weight.detach()
        del norm.weight
        norm.register_buffer("weight", gamma)
    np.testing.assert_array_equal(score(analysis_of(model), model, "gamma"), expected)


def test_random_is_the_same_each_time_and_leaves_the_global_generators_alone() -> None:
    model = net()
    state = torch.get_rng_state()
    first = score(analysis_of(model), model, "random")
    assert (first == score(analysis_of(model), model, "random")).all()
    assert len(set(first)) == 19
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_scored_in_double(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    exact = score(analysis_of(model), model.double(), "gamma")
    np.testing.assert_array_equal(score(analysis_of(model), model.to(dtype), "gamma"), exact)


def theirs(model: Net, importance: object) -> np.ndarray:
    """The same object on groups that torch_pruning found itself."""
    graph = tp.DependencyGraph().build_dependency(model, torch.zeros(1, 3, 2, 2).double())
    roots = [model.left, model.plain, model.up]
    groups = [graph.get_pruning_group(m, tp.prune_conv_out_channels, list(range(m.out_channels))) for m in roots]
    return np.concatenate([importance(group).numpy() for group in groups])  # type: ignore[operator]


@pytest.mark.parametrize(
    "importance",
    [
        tp.importance.MagnitudeImportance(p=1),
        tp.importance.MagnitudeImportance(p=2, group_reduction="max", normalizer=None),
        tp.importance.MagnitudeImportance(p=2, bias=True, normalizer="max"),
        tp.importance.LAMPImportance(),
        tp.importance.FPGMImportance(),
        tp.importance.TaylorImportance(),
        tp.importance.TaylorImportance(multivariable=True),
        tp.importance.HessianImportance(),
    ],
    ids=lambda importance: type(importance).__name__,
)
def test_torch_pruning_scores_are_those_it_gives_on_groups_of_its_own(importance: tp.importance.Importance) -> None:
    model = net()
    model(torch.randn(2, 3, 2, 2).double()).square().sum().backward()
    ours = score(analysis_of(model), model, importance)
    np.testing.assert_allclose(ours, theirs(model, importance), rtol=1e-5)


def test_batch_norm_scale_importance_falls_back_on_filter_norms_where_there_is_no_norm() -> None:
    model = net()
    scores = score(analysis_of(model), model, tp.importance.BNScaleImportance())
    np.testing.assert_allclose(
        scores[:8], over_mean(model.left_norm.weight.abs() + model.right_norm.weight.abs()), rtol=1e-5
    )
    np.testing.assert_array_equal(scores[8:], score(analysis_of(model), model, "l2")[8:])


def test_random_and_accumulated_hessian_importance_of_torch_pruning() -> None:
    model = net()
    assert score(analysis_of(model), model, tp.importance.RandomImportance()).shape == (19,)
    hessian = tp.importance.HessianImportance()
    hessian.zero_grad()
    for loss in model(torch.randn(3, 3, 2, 2).double()).square().sum(1):
        model.zero_grad()
        loss.backward(retain_graph=True)
        hessian.accumulate_grad(model)
    scores = score(analysis_of(model), model, hessian)
    assert (scores >= 0).all()
    assert len(set(scores[scores > 0])) > 10


def test_an_importance_derived_by_the_user_is_accepted() -> None:
    class Rising(tp.importance.Importance):
        def __call__(self, group: tp.dependency.Group) -> Tensor:
            _, indices = group[0]
            return torch.arange(1.0, len(indices) + 1)

    model = net()
    scores = score(analysis_of(model), model, Rising())
    assert scores.tolist() == [*range(1, 9), *range(1, 7), *range(1, 6)]


def test_taylor_without_gradients_says_what_is_missing() -> None:
    model = net()
    with pytest.raises(EffpError, match="TaylorImportance could not score a group") as caught:
        score(analysis_of(model), model, tp.importance.TaylorImportance())
    assert "call backward() first" in str(caught.value)
    assert "group left" in str(caught.value)


def test_a_model_is_left_as_it_was_by_torch_pruning_scores() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    score(analysis_of(model), model, tp.importance.MagnitudeImportance())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_function_and_a_registered_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effp_fx.importance.IMPORTANCES", dict(IMPORTANCES))

    def rising(analysis: Analysis, tensors: Mapping[str, Tensor]) -> np.ndarray:
        return np.arange(analysis.channels, dtype=np.float64)

    model = net()
    register_importance("rising", rising)
    assert (score(analysis_of(model), model, "rising") == score(analysis_of(model), model, rising)).all()
    with pytest.raises(RegistrationError, match="an importance named 'rising' exists already"):
        register_importance("rising", rising)


def test_what_is_no_importance_is_refused() -> None:
    model = net()
    with pytest.raises(NameNotFoundError, match="no importance is named 'gama'") as caught:
        score(analysis_of(model), model, "gama")
    assert "gamma, l1, l2, random" in str(caught.value)
    with pytest.raises(EffpError, match="must be a name, a function"):
        score(analysis_of(model), model, 3)
    with pytest.raises(EffpError, match="one score per channel"):
        score(analysis_of(model), model, lambda analysis, tensors: np.ones(3))


def test_nan_in_the_weights_is_named_by_its_group() -> None:
    model = net()
    with torch.no_grad():
        model.plain.weight[2, 1] = torch.nan
    with pytest.raises(EffpError, match="not finite") as caught:
        score(analysis_of(model), model, "gamma")
    assert "group plain" in str(caught.value)


def test_every_registered_importance_is_positive_and_has_mean_one_in_a_group() -> None:
    model = net()
    analysis = analysis_of(model)
    for name in IMPORTANCES:
        scores = score(analysis, model, name)
        assert (scores > 0).all()
        if name != "random":
            assert [scores[g.start : g.stop].mean() for g in analysis.groups] == pytest.approx([1.0] * 3)


def test_the_adapter_is_an_importance_like_any_other() -> None:
    model = net()
    adapter = torch_pruning_importance(tp.importance.MagnitudeImportance(), model)
    tensors = dict(model.named_parameters())
    np.testing.assert_array_equal(
        adapter(analysis_of(model), tensors), score(analysis_of(model), model, tp.importance.MagnitudeImportance())
    )
