"""Weights that are not used as they are: tied, parametrised, reshaped, standardised, looked up; and hooks around layers."""


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


def tied_embedding() -> nn.Module:
    table = nn.Embedding(10, 8)
    head = lin(8, 10, bias=False)
    head.weight = table.weight
    return Net(lambda m, x: m.head(torch.relu(m.mid(m.table(x)))), table=table, mid=lin(8, 8), head=head)


def tied_layers() -> nn.Module:
    net = nn.Sequential(c2(3, 8, 1), c2(8, 8, 1), nn.ReLU(), c2(8, 8, 1), c2(8, 4, 1))
    net[3].weight = net[1].weight
    return net


def tied_transposed() -> nn.Module:
    """A decoder that reads with the weight that the encoder makes with."""
    return Net(
        lambda m, x: m.last(F.linear(torch.relu(m.enc(torch.relu(m.first(x)))), m.enc.weight.t())),
        first=lin(3, 8),
        enc=lin(8, 6),
        last=lin(8, 4),
    )


def tokens() -> Tensor:
    return torch.randint(0, 10, (2, 5))


SHARED = {
    "a layer under two names": Row(
        16,
        lambda: Net(
            lambda m, x: m.c(m.b(torch.relu(m.a(x)))),
            a=(layer := c2(3, 8, 1)),
            also=layer,
            b=c2(8, 8, 1),
            c=c2(8, 4, 1),
        ),
        stays="",
    ),
    "two layers with one weight": Row(8, tied_layers),
    "a weight and its transpose": Row(8 + 6, tied_transposed, (5, 3)),
    "an embedding and the head": Row(8, tied_embedding, inputs=tokens),
    "a scale that is also read": Row(
        0,
        lambda: Net(
            lambda m, x: m.last(m.first(x) * m.s + F.linear(m.first(x), m.s[None])),
            first=lin(3, 8),
            s=weight(8),
            last=lin(8, 4),
        ),
        (5, 3),
    ),
    "one scale on two branches": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.s * m.a(x) + m.s * m.b(x)),
            a=c2(3, 8, 1),
            b=c2(3, 8, 3, **P),
            s=weight(8, 1, 1),
            last=c2(8, 4, 1),
        ),
    ),
}

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
    "weight standardisation by a norm": Row(6, middle(lambda: StandardisedByNorm(8, 6, 3))),
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
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(torch.relu(F.linear(m.first(x), m.a @ m.b))),
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
        0,
        lambda: Net(
            lambda m, x: m.last(F.batch_norm(m.first(x), m.mean, m.var, torch.exp(m.s), m.b)),
            first=c2(3, 8, 1),
            s=weight(8),
            b=weight(8),
            mean=torch.zeros(8),
            var=torch.ones(8),
            last=c2(8, 4, 1),
        ),
        stays="not zero while masked",
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

TABLES = {
    "embedding": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(torch.relu(m.mid(m.table(x)))), table=nn.Embedding(10, 8), mid=lin(8, 6), last=lin(6, 4)
        ),
        inputs=tokens,
    ),
    "position embedding": Row(
        8,
        lambda: Net(lambda m, x: m.last(m.first(x) + m.pos), first=lin(3, 8), pos=weight(1, 5, 8), last=lin(8, 4)),
        (2, 5, 3),
    ),
    "position embedding out of a table": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.first(x) + m.pos(torch.arange(5))),
            first=lin(3, 8),
            pos=nn.Embedding(5, 8),
            last=lin(8, 4),
        ),
        (2, 5, 3),
    ),
    "class token": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(torch.cat([m.token.expand(x.shape[0], -1, -1), m.first(x)], 1)),
            first=lin(3, 8),
            token=weight(1, 1, 8),
            last=lin(8, 4),
        ),
        (2, 5, 3),
    ),
    "queries": Row(
        8 + 8,
        lambda: Net(
            lambda m, x: m.last(F.scaled_dot_product_attention(m.q.expand(2, -1, -1), m.k(x), m.v(x), scale=0.5)),
            q=weight(1, 6, 8),
            k=lin(3, 8),
            v=lin(3, 8),
            last=lin(8, 4),
        ),
        (2, 5, 3),
    ),
    "relative position bias": Row(
        4,
        lambda: Net(
            lambda m, x: m.last(
                F.scaled_dot_product_attention(
                    *(f(x).unflatten(2, (m.heads, 2)).transpose(1, 2) for f in (m.q, m.k, m.v)), attn_mask=m.bias
                )
                .transpose(1, 2)
                .flatten(2)
            ),
            q=lin(3, 8),
            k=lin(3, 8),
            v=lin(3, 8),
            bias=weight(4, 5, 5),
            heads=4,
            last=lin(8, 4),
        ),
        (2, 5, 3),
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
ROWS = {**SHARED, **PARAMETRISED, **TABLES, **HOOKED}


@pytest.mark.parametrize("name", cases(ROWS, COVERAGE))
def test_masked_is_compact(name: str) -> None:
    ROWS[name].hold()
