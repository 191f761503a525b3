"""Weights that are parametrised, reshaped, standardised or put together first, and hooks around layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.exactness import Net, Row, cases, weight

c1, c2, lin, bn = nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm2d
P = {"padding": 1}


class Doubled(nn.Module):
    """A parametrisation that keeps zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x


class Standardised(nn.Conv2d):
    """Weight standardisation: each filter is centred and scaled by what is in it."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-3)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class StandardisedByNorm(nn.Conv2d):
    """The same by way of a batch norm over the reshaped weight, as some families write it."""

    def forward(self, x: Tensor) -> Tensor:
        w = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-3
        )
        return F.conv2d(x, w.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Demodulated(nn.Conv2d):
    """Each filter divided by its length."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight * (self.weight.square().sum((1, 2, 3), keepdim=True) + 1e-3).rsqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


def middle(layer: object) -> object:
    """A convolution to 8 channels, the layer from 8 to 6, a norm, a convolution to 4."""
    return lambda: nn.Sequential(c2(3, 8, 3), nn.ReLU(), layer(), bn(6), nn.ReLU(), c2(6, 4, 1))


def hooked() -> nn.Module:
    net = nn.Sequential(c2(3, 8, 1), nn.ReLU(), c2(8, 4, 1))
    net[0].register_forward_hook(lambda m, args, out: out * 2)
    net[2].register_forward_pre_hook(lambda m, args: (args[0].neg(),))
    return net


PARAMETRISED = {
    "weight_norm": Row(
        6, middle(lambda: parametrizations.weight_norm(c2(8, 6, 3))), stays="enters the norm of a weight"
    ),
    "weight_norm on the first": Row(
        8, lambda: nn.Sequential(parametrizations.weight_norm(c2(3, 8, 3)), nn.ReLU(), c2(8, 4, 1))
    ),
    "weight_norm of a whole linear": Row(
        0, lambda: nn.Sequential(lin(3, 8), parametrizations.weight_norm(lin(8, 6), dim=None), lin(6, 4)), (5, 3)
    ),
    "spectral_norm": Row(
        0, lambda: nn.Sequential(c2(3, 8, 3), parametrizations.spectral_norm(c2(8, 6, 3)), c2(6, 4, 1))
    ),
    "a parametrisation that keeps zero": Row(8 + 6, middle(lambda: Net_with(c2(8, 6, 3)))),
    "weight_norm of old": Row(6, lambda: ran(middle(lambda: old_weight_norm(c2(8, 6, 3)))())),
    "a mask of torch.nn.utils.prune": Row(
        8 + 6, lambda: ran(middle(lambda: prune.l1_unstructured(c2(8, 6, 3), "weight", 0.3))())
    ),
    "weight standardisation": Row(6, middle(lambda: Standardised(8, 6, 3)), stays="reduced together"),
    "weight standardisation by a norm": Row(6, middle(lambda: StandardisedByNorm(8, 6, 3)), stays="need every input"),
    "weight standardisation on the first": Row(
        8, lambda: nn.Sequential(Standardised(3, 8, 3), bn(8), nn.ReLU(), c2(8, 4, 1))
    ),
    "filters of length one": Row(6, middle(lambda: Demodulated(8, 6, 3))),
    "a weight scaled by another": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(F.conv2d(m.first(x), m.w * m.s)),
            first=c2(3, 8, 1),
            w=weight(6, 8, 1, 1),
            s=weight(6, 1, 1, 1),
            last=c2(6, 4, 1),
        ),
    ),
    "a weight scaled along what it reads": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(F.conv2d(m.first(x), m.w * m.s)),
            first=c2(3, 8, 1),
            w=weight(6, 8, 1, 1),
            s=weight(1, 8, 1, 1),
            last=c2(6, 4, 1),
        ),
    ),
    "a sum of kernels": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(F.conv2d(m.first(x), F.pad(m.w, (1, 1, 1, 1)) + m.v, padding=1)),
            first=c2(3, 8, 1),
            w=weight(6, 8, 1, 1),
            v=weight(6, 8, 3, 3),
            last=c2(6, 4, 1),
        ),
    ),
    "a weight out of two": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(F.conv2d(m.first(x), torch.cat([m.w, m.v], 0))),
            first=c2(3, 8, 1),
            w=weight(2, 8, 1, 1),
            v=weight(4, 8, 1, 1),
            last=c2(6, 4, 1),
        ),
    ),
    "a weight through reshape and transpose": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(F.conv2d(m.first(x), m.w.t().reshape(*m.w.t().shape, 1, 1))),
            first=c2(3, 8, 1),
            w=weight(8, 6),
            last=c2(6, 4, 1),
        ),
    ),
    "a weight of low rank": Row(
        8 + 6 + 2,
        lambda: Net(
            lambda m, x: m.last(torch.tanh(F.linear(m.first(x), m.a @ m.b))),
            first=lin(3, 8),
            a=weight(6, 2),
            b=weight(2, 8),
            last=lin(6, 4),
        ),
        (5, 3),
    ),
    "a shift through reshape": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.first(x) + m.s.view(1, -1, 1, 1)), first=c2(3, 8, 1), s=weight(8), last=c2(8, 4, 1)
        ),
    ),
    "a shift out of two": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.first(x) + torch.cat([m.s, m.t])[:, None, None]),
            first=c2(3, 8, 1),
            s=weight(5),
            t=weight(3),
            last=c2(8, 4, 1),
        ),
    ),
    "a softplus of a scale": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.first(x) * F.softplus(m.s)), first=c2(3, 8, 1), s=weight(8, 1, 1), last=c2(8, 4, 1)
        ),
    ),
    "a norm whose scale is made": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(F.batch_norm(m.first(x), m.mean, m.var, torch.exp(m.s), m.b)),
            first=c2(3, 8, 1),
            s=weight(8),
            b=weight(8),
            mean=torch.zeros(8),
            var=torch.ones(8),
            last=c2(8, 4, 1),
        ),
    ),
    "a folded norm": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(
                m.first(x) * (m.g * (m.v + 1e-5).rsqrt())[:, None, None]
                + (m.b - m.mean * m.g * (m.v + 1e-5).rsqrt())[:, None, None]
            ),
            first=c2(3, 8, 1),
            g=weight(8),
            b=weight(8),
            mean=torch.rand(8),
            v=torch.rand(8) + 0.5,
            last=c2(8, 4, 1),
        ),
    ),
}

HOOKED = {
    "hooks that change values": Row(8, hooked),
    "a module called twice under hooks": Row(8, lambda: Net(lambda m, x: m.net(x) + m.net(x.neg()), net=hooked())),
}


def Net_with(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Doubled())


def ran(net: nn.Module) -> nn.Module:
    """The network after a run without gradients: before it, torch's hooks hold a tensor that cannot be copied."""
    with torch.no_grad():
        net(torch.randn(2, 3, 8, 8))
    return net


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


COVERAGE: dict[str, str] = {}
ROWS = {**PARAMETRISED, **HOOKED}


@pytest.mark.parametrize("name", cases(ROWS, COVERAGE))
def test_masked_is_compact(name: str) -> None:
    ROWS[name].hold()
