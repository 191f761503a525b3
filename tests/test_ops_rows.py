"""Contractions and norms, a network each: masked == compact, and exactly the channels that may go are found."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from tests.exactness import Net, Row, cases, weight

c1, c2, c3, lin = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear
t1, t2, t3 = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
bn, gn = nn.BatchNorm2d, nn.GroupNorm


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def around(*layers: nn.Module, width: int = 8, out: int | None = None) -> nn.Module:
    """The layers between a convolution from 3 to `width` channels and one from `out` to 4."""
    return nn.Sequential(c2(3, width, 3, padding=1), *layers, c2(out or width, 4, 1))


CONVOLUTIONS = {
    "conv1d": Row(8, lambda: chain(c1(3, 8, 3), c1(8, 4, 1)), (2, 3, 9)),
    "conv2d stride dilation": Row(8, lambda: around(c2(8, 8, 3, stride=2, dilation=2, padding=2, groups=8))),
    "conv3d": Row(8, lambda: chain(c3(3, 8, 3), nn.BatchNorm3d(8), c3(8, 4, 1)), (1, 3, 5, 5, 5)),
    "conv2d without bias": Row(8, lambda: chain(c2(3, 8, 3, bias=False), nn.ReLU(), c2(8, 4, 1, bias=False))),
    "conv2d without a batch": Row(8, lambda: around(nn.ReLU()), (3, 8, 8)),
    "conv2d same padding": Row(8, lambda: around(c2(8, 8, 3, padding="same", groups=8))),
    "conv2d circular": Row(16, lambda: around(c2(8, 8, 3, padding=1, padding_mode="circular"))),
    "conv2d reflect": Row(16, lambda: around(c2(8, 8, 3, padding=1, padding_mode="reflect"))),
    "grouped in two": Row(4 + 4, lambda: around(c2(8, 8, 3, groups=2), width=8)),
    "grouped in four wider": Row(2 + 4, lambda: around(c2(8, 16, 3, groups=4), out=16)),
    "grouped 1d": Row(4 + 3, lambda: chain(c1(3, 8, 1), c1(8, 6, 3, groups=2), c1(6, 4, 1)), (2, 3, 9)),
    "grouped 3d": Row(4 + 3, lambda: chain(c3(3, 8, 1), c3(8, 6, 1, groups=2), c3(6, 4, 1)), (1, 3, 4, 4, 4)),
    "depthwise": Row(8, lambda: around(c2(8, 8, 3, groups=8))),
    "depthwise twice": Row(8, lambda: around(c2(8, 8, 3, groups=8), nn.ReLU(), c2(8, 8, 3, groups=8))),
    "depthwise with multiplier": Row(8, lambda: around(c2(8, 24, 3, groups=8), bn(24), out=24)),
    "depthwise without bias": Row(8, lambda: around(c2(8, 8, 3, groups=8, bias=False), bn(8))),
    "transposed": Row(8 + 6, lambda: around(t2(8, 6, 3, stride=2), nn.ReLU(), out=6)),
    "transposed 1d": Row(8 + 6, lambda: chain(c1(3, 8, 1), t1(8, 6, 3), c1(6, 4, 1)), (2, 3, 9)),
    "transposed 3d": Row(8 + 6, lambda: chain(c3(3, 8, 1), t3(8, 6, 3), c3(6, 4, 1)), (1, 3, 3, 3, 3)),
    "transposed grouped": Row(4 + 3, lambda: around(t2(8, 6, 3, groups=2), out=6)),
    "transposed depthwise": Row(8, lambda: around(t2(8, 8, 3, groups=8))),
    "transposed depthwise multiplier": Row(8, lambda: around(t2(8, 16, 3, groups=8), out=16)),
    "deform_conv2d": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(m.deform((y := m.first(x)), m.offset(y))),
            first=c2(3, 8, 3, padding=1),
            offset=c2(8, 18, 3, padding=1),
            deform=torchvision.ops.DeformConv2d(8, 6, 3, padding=1),
            last=c2(6, 4, 1),
        ),
        stays="is used as an offset",
    ),
    "deform_conv2d with a mask": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(m.deform((y := m.first(x)), m.offset(y), torch.sigmoid(m.mask(y)))),
            first=c2(3, 8, 3, padding=1),
            offset=c2(8, 18, 3, padding=1),
            mask=c2(8, 9, 3, padding=1),
            deform=torchvision.ops.DeformConv2d(8, 6, 3, padding=1, bias=False),
            last=c2(6, 4, 1),
        ),
    ),
    "one layer twice": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.mid(torch.relu(m.mid(m.first(x))))),
            first=c2(3, 8, 1),
            mid=c2(8, 8, 3),
            last=c2(8, 4, 1),
        ),
    ),
    "one head on two maps": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: (m.head(torch.relu(m.a(x))), m.head(torch.relu(m.b(x)))),
            a=c2(3, 8, 1),
            b=c2(3, 8, 3),
            head=chain(c2(8, 6, 1), nn.ReLU(), c2(6, 4, 1)),
        ),
    ),
    "the same input to two convolutions": Row(
        8, lambda: Net(lambda m, x: m.b(y := m.a(x)) + m.c(y), a=c2(3, 8, 1), b=c2(8, 4, 1), c=c2(8, 4, 1))
    ),
}

PRODUCTS = {
    "linear": Row(8 + 6, lambda: chain(lin(3, 8), nn.ReLU(), lin(8, 6), nn.ReLU(), lin(6, 4)), (5, 3)),
    "linear on tokens": Row(8, lambda: chain(lin(3, 8), nn.GELU(), lin(8, 4)), (2, 5, 3)),
    "flatten to linear": Row(8, lambda: chain(c2(3, 8, 3), nn.ReLU(), nn.Flatten(), lin(8 * 36, 4))),
    "pool, flatten, linear": Row(
        8 + 6, lambda: chain(c2(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), lin(8, 6), lin(6, 4))
    ),
    "bilinear": Row(0, lambda: Net(lambda m, x: m.b(m.a(x), m.a(x)), a=lin(3, 8), b=nn.Bilinear(8, 8, 4)), (5, 3)),
    "matmul with a parameter": Row(
        8 + 6,
        lambda: Net(lambda m, x: m.last(torch.relu(m.first(x) @ m.w)), first=lin(3, 8), w=weight(8, 6), last=lin(6, 4)),
        (5, 3),
    ),
    "addmm": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(torch.addmm(m.b, m.first(x), m.w)),
            first=lin(3, 8),
            w=weight(8, 6),
            b=weight(6),
            last=lin(6, 4),
        ),
        (5, 3),
    ),
    "baddbmm": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(torch.baddbmm(m.b, m.first(x), m.w.expand(2, -1, -1))),
            first=lin(3, 8),
            w=weight(8, 6),
            b=weight(1, 1, 6),
            last=lin(6, 4),
        ),
        (2, 5, 3),
    ),
    "einsum with a parameter": Row(
        8 + 6,
        lambda: Net(
            lambda m, x: m.last(torch.einsum("bchw,dc->bdhw", m.first(x), m.w)),
            first=c2(3, 8, 1),
            w=weight(6, 8),
            last=c2(6, 4, 1),
        ),
    ),
    "einsum of two maps": Row(
        8,
        lambda: Net(lambda m, x: torch.einsum("bchw,bcxy->bhwxy", m.a(x), m.b(x)), a=c2(3, 8, 1), b=c2(3, 8, 1)),
        (2, 3, 4, 4),
    ),
    "bmm of two maps": Row(
        8, lambda: Net(lambda m, x: torch.bmm(m.a(x).transpose(1, 2), m.b(x)), a=c1(3, 8, 1), b=c1(3, 8, 1)), (2, 3, 9)
    ),
    "mv": Row(8, lambda: Net(lambda m, x: torch.mv(m.a(x), m.w), a=lin(3, 8), w=weight(8)), (5, 3)),
    "outer product of channels": Row(
        0,
        lambda: Net(
            lambda m, x: m.last(torch.bmm(m.a(x), m.b(x).transpose(1, 2)).flatten(1)),
            a=c1(3, 8, 1),
            b=c1(3, 6, 1),
            last=lin(48, 4),
        ),
        (2, 3, 9),
    ),
    "correlation of channels": Row(
        0,
        lambda: Net(
            lambda m, x: m.last(torch.relu((y := m.a(x)) @ y.transpose(1, 2)).flatten(1)),
            a=c1(3, 8, 1),
            last=lin(64, 4),
        ),
        (2, 3, 9),
    ),
}


NORMS = {
    "batch norm": Row(8, lambda: around(bn(8), nn.ReLU())),
    "batch norm 1d": Row(8, lambda: chain(lin(3, 8), nn.BatchNorm1d(8), nn.ReLU(), lin(8, 4)), (5, 3)),
    "batch norm without affine": Row(8, lambda: around(bn(8, affine=False))),
    "batch norm without affine, then one with": Row(8, lambda: around(bn(8, affine=False), bn(8))),
    "batch norm without statistics": Row(8, lambda: around(bn(8, track_running_stats=False))),
    "frozen batch norm": Row(8, lambda: around(torchvision.ops.FrozenBatchNorm2d(8), nn.ReLU())),
    "one batch norm on two maps": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.norm(m.a(x)) * m.norm(m.b(x))),
            a=c2(3, 8, 1),
            b=c2(3, 8, 1),
            norm=bn(8),
            last=c2(8, 4, 1),
        ),
    ),
    "instance norm": Row(8, lambda: around(nn.InstanceNorm2d(8, affine=True))),
    "instance norm without affine": Row(8, lambda: around(nn.InstanceNorm2d(8))),
    "instance norm with statistics": Row(
        8, lambda: around(nn.InstanceNorm2d(8, affine=True, track_running_stats=True))
    ),
    "group norm": Row(4, lambda: around(gn(4, 8), nn.ReLU())),
    "group norm without affine": Row(4, lambda: around(gn(4, 8, affine=False), nn.ReLU())),
    "group norm of one": Row(0, lambda: around(gn(1, 8)), stays="shares its statistics"),
    "group norm of each": Row(8, lambda: around(gn(8, 8))),
    "group norm after grouped": Row(4 + 2, lambda: around(c2(8, 8, 1, groups=2), gn(4, 8))),
    "layer norm": Row(
        0, lambda: chain(lin(3, 8), nn.LayerNorm(8), lin(8, 4)), (2, 5, 3), stays="shares its statistics"
    ),
    "layer norm over places": Row(8, lambda: around(nn.LayerNorm((8, 8)))),
    "layer norm over places without bias": Row(8, lambda: around(nn.LayerNorm((8, 8), bias=False))),
    "layer norm around a bottleneck": Row(
        16, lambda: chain(lin(3, 8), nn.LayerNorm(8), lin(8, 16), nn.GELU(), lin(16, 4)), (2, 5, 3)
    ),
    "rms norm": Row(0, lambda: chain(lin(3, 8), nn.RMSNorm(8), lin(8, 4)), (2, 5, 3), stays="shares its statistics"),
    "local response norm": Row(0, lambda: around(nn.LocalResponseNorm(3))),
    "softmax over channels": Row(0, lambda: around(nn.Softmax(1)), stays="a softmax runs over these channels"),
    "softmax over places": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.a(x).flatten(2).softmax(-1).unflatten(2, (8, 8)) * m.b(x)),
            a=c2(3, 8, 1),
            b=c2(3, 8, 1),
            last=c2(8, 4, 1),
        ),
    ),
    "normalize over channels": Row(
        8, lambda: Net(lambda m, x: m.last(F.normalize(m.a(x), dim=1)), a=c2(3, 8, 1), last=c2(8, 4, 1))
    ),
}

COVERAGE: dict[str, str] = {}

ROWS = {**CONVOLUTIONS, **PRODUCTS, **NORMS}


@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
@pytest.mark.parametrize("name", cases(ROWS, COVERAGE))
def test_masked_is_compact(name: str) -> None:
    ROWS[name].hold()
