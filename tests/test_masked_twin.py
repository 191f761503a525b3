"""The instrument that judges another tool's cuts: it must pass right ones, and catch each kind of wrong one."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks import masked_twin, position_macs
from benchmarks.torch_pruning_recipes import SplitC2f
from benchmarks.torch_pruning_rival import rival
from effp_fx.inputs import Example


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.relu(self.norm(self.first(x))))
        return result


class Shuffled(Net):
    """Its output is in two halves of the first layer's channels, shuffled: what Torch-Pruning has no rule for."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        result: Tensor = self.second(y)
        return result


def _net(kind: Callable[[], nn.Module] = Net) -> nn.Module:
    torch.manual_seed(3)
    net = kind().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.5, 1.5)  # so that no channel is dead behind the relu
            nn.init.normal_(module.running_mean, 0.0, 0.1)  # type: ignore[arg-type]
    return net


def _slice(parameter: nn.Parameter, dim: int, keep: list[int]) -> nn.Parameter:
    """What Torch-Pruning does to a parameter: the values and the gradient are cut alike."""
    index = torch.tensor(keep)
    cut = nn.Parameter(parameter.detach().index_select(dim, index))
    assert parameter.grad is not None
    cut.grad = parameter.grad.index_select(dim, index)
    return cut


def _cut(net: nn.Module, made: list[int], read: list[int]) -> nn.Module:
    """Keep `made` of the first layer's channels and `read` of the columns that read them."""
    net = copy.deepcopy(net)
    masked_twin.tag(net)
    net.first.weight, net.first.bias = _slice(net.first.weight, 0, made), _slice(net.first.bias, 0, made)
    net.norm.weight, net.norm.bias = _slice(net.norm.weight, 0, made), _slice(net.norm.bias, 0, made)
    net.norm.running_mean, net.norm.running_var = net.norm.running_mean[made], net.norm.running_var[made]
    net.second.weight = _slice(net.second.weight, 1, read)
    return net


def _error(dense: nn.Module, cut: nn.Module, *, consumers: bool = False) -> float:
    image = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    kept = masked_twin.kept_positions(cut, dense)
    twin = masked_twin.masked(copy.deepcopy(dense), kept, consumers=consumers).double()
    cut = copy.deepcopy(cut)
    for parameter in cut.parameters():
        parameter.grad = None
    seen = [masked_twin.observe(network, lambda network: network(image)) for network in (cut.double(), twin)]
    return masked_twin.relative_error(seen[0], seen[1])[0]


def test_a_right_cut_is_exact() -> None:
    dense = _net()
    assert _error(dense, _cut(dense, [0, 2, 5], [0, 2, 5])) < 1e-12


@pytest.mark.parametrize("read", [[0, 2, 6], [5, 2, 0]])
def test_columns_of_other_channels_are_caught(read: list[int]) -> None:
    dense = _net()
    assert _error(dense, _cut(dense, [0, 2, 5], read)) > 1e-3
    assert _error(dense, _cut(dense, [0, 2, 5], read), consumers=True) > 1e-3


def test_a_channel_that_is_not_zero_where_it_is_read_shows_in_one_twin_only() -> None:
    class Leaks(Net):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(torch.sigmoid(self.norm(self.first(x))))
            return result

    dense = _net(Leaks)
    cut = _cut(dense, [0, 2, 5], [0, 2, 5])
    assert _error(dense, cut) > 1e-3
    assert _error(dense, cut, consumers=True) < 1e-12


def _seen(head: float, labels: list[int], scores: int, *, last: str = "head") -> masked_twin.Observed:
    outputs = [torch.rand(scores, 4), torch.tensor(labels)]
    return masked_twin.Observed({"head": [torch.full((2,), head)], "output": outputs}, 0, last)


def test_other_boxes_of_equal_score_are_no_error_if_the_layers_agree() -> None:
    dense = _seen(1.0, [1, 2], 2)
    assert masked_twin.relative_error(_seen(1.0, [2, 1, 1], 3), dense) == (0.0, "choice")
    assert masked_twin.relative_error(_seen(1.1, [2, 1, 1], 3), dense)[0] == math.inf
    assert masked_twin.relative_error(_seen(1.0, [2, 1, 1], 3), _seen(1.0, [1, 2], 2, last="later"))[0] == math.inf


def test_classes_that_were_cut_are_no_choice() -> None:
    image = torch.rand(1, 3, 4, 4)
    dense = _net()
    found, expected = (masked_twin.observe(net, lambda net: net(image)) for net in (_net(), dense))
    found.tensors["output"][0] = found.tensors["output"][0][:, :4]
    assert masked_twin.relative_error(found, expected) == (math.inf, "output (1, 5, 4, 4) became (1, 4, 4, 4)")


def test_a_tag_that_is_lost_is_an_error() -> None:
    dense = _net()
    cut = _cut(dense, [0, 2], [0, 2])
    cut.second.weight.grad = None
    with pytest.raises(ValueError, match=r"second\.weight: .* positions are lost"):
        masked_twin.kept_positions(cut, dense)


def test_macs_from_positions_are_the_products_of_the_layer_sizes() -> None:
    net = _net()
    applied = position_macs.positions(net, lambda model: model(torch.rand(2, 3, 6, 6)))
    assert position_macs.macs(net, applied) == 2 * 36 * (8 * 3 * 9 + 5 * 8)


def test_torch_pruning_is_exact_on_a_net_it_understands() -> None:
    result = rival(_net(), Example((torch.rand(1, 3, 6, 6),)), told="recipe")
    assert (result.status, result.mask_shows) == ("ok", True)
    assert result.error is not None and result.error < 1e-12
    assert result.flops_kept is not None and result.flops_kept <= 0.5


def test_a_shuffle_it_does_not_understand_is_not_called_ok() -> None:
    result = rival(_net(Shuffled), Example((torch.rand(1, 3, 6, 6),)), told="recipe")
    assert result.status in ("wrong", "no-forward")
    assert result.message


def test_it_leaves_the_model_as_it_was() -> None:
    net = _net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rival(net, Example((torch.rand(1, 3, 6, 6),)), told="nothing")
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.ultralytics
def test_c2f_taken_apart_gives_what_c2f_gives() -> None:
    block = pytest.importorskip("ultralytics.nn.modules.block")
    torch.manual_seed(0)
    c2f = block.C2f(6, 8, n=2, shortcut=True).eval()
    c2f.f, c2f.i, c2f.type = -1, 0, "C2f"
    image = torch.rand(1, 6, 5, 5)
    torch.testing.assert_close(SplitC2f(c2f).eval()(image), c2f(image))
