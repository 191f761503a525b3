"""Elementwise ops and reductions, a network each: masked == compact, and exactly the channels that may go are found."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.exactness import Net, Row, cases, weight

c2, lin, bn = nn.Conv2d, nn.Linear, nn.BatchNorm2d


def between(body: object, channels: int = 8, stays: str = "", **parts: object) -> Row:
    """`body(network, y)` between a convolution from 3 to 8 channels and one from 8 to 4."""

    def forward(net: Net, x: Tensor) -> Tensor:
        result: Tensor = net.last(body(net, net.first(x)))  # type: ignore[operator]
        return result

    parts = {"last": lambda: c2(8, 4, 1), **parts}
    return Row(channels, lambda: Net(forward, first=c2(3, 8, 3, padding=1), **_made(parts)), stays=stays)


def two(body: object, channels: int = 8, stays: str = "", **parts: object) -> Row:
    """`body(network, y, z)` of two maps of 8 channels, then a convolution from 8 to 4."""

    def forward(net: Net, x: Tensor) -> Tensor:
        result: Tensor = net.last(body(net, net.a(x), net.b(x)))  # type: ignore[operator]
        return result

    parts = {"last": lambda: c2(8, 4, 1), **parts}
    return Row(channels, lambda: Net(forward, a=c2(3, 8, 1), b=c2(3, 8, 1), **_made(parts)), stays=stays)


def _made(parts: dict[str, object]) -> dict[str, object]:
    """Parts that are functions are called, so that each network has weights of its own."""
    return {name: part() if isinstance(part, type(_made)) else part for name, part in parts.items()}


SILENT = ["relu", "relu6", "silu", "gelu", "tanh", "hardswish", "leaky_relu", "elu", "selu"]
SILENT += ["celu", "hardtanh", "softsign", "tanhshrink", "mish", "hardshrink", "softshrink"]
LOUD = ["sigmoid", "softplus", "hardsigmoid", "logsigmoid"]
LEAK = "not zero while masked"

ACTIVATIONS = {
    **{name: between(lambda m, y, name=name: getattr(F, name)(y)) for name in SILENT},
    **{name: between(lambda m, y, name=name: getattr(F, name)(y)) for name in LOUD},
    **{
        f"{name}, then a norm": between(lambda m, y, name=name: m.n(getattr(F, name)(y)), 8, n=lambda: bn(8))
        for name in LOUD
    },
    "in place": between(lambda m, y: F.relu_(y)),
    "abs, square, sqrt": between(lambda m, y: y.abs().sqrt() + y.square()),
    "exp": between(lambda m, y: torch.exp(y)),
    "expm1": between(lambda m, y: torch.expm1(y)),
    "log of abs": between(lambda m, y: m.n(torch.log(y.abs() + 1)), 8, n=lambda: bn(8)),
    "log of what may be zero": between(
        lambda m, y: m.n(torch.log(y.abs()).clamp(-9, 9)), 0, "zero while masked", n=lambda: bn(8)
    ),
    "reciprocal": between(lambda m, y: m.n(y.abs().reciprocal()), 0, "zero while masked", n=lambda: bn(8)),
    "square root below one": between(lambda m, y: m.n((y.square() + 0.1).rsqrt()), 8, n=lambda: bn(8)),
    "prelu": between(lambda m, y: m.p(y), p=lambda: nn.PReLU()),
    "prelu of each": between(lambda m, y: m.p(y), p=lambda: nn.PReLU(8)),
    "prelu of each after a sigmoid": between(lambda m, y: m.p(torch.sigmoid(y)), 8, p=lambda: nn.PReLU(8)),
    "clamp around zero": between(lambda m, y: y.clamp(-1, 1)),
    "clamp above zero": between(lambda m, y: y.clamp(min=0.1)),
    "clamp by tensors": between(
        lambda m, y: torch.clamp(y, m.low, m.high), 8, low=lambda: torch.zeros(1) - 1, high=lambda: torch.ones(1)
    ),
    "threshold": between(lambda m, y: F.threshold(y, 0.1, 0.5)),
    "hard sigmoid gate": two(lambda m, y, z: y * F.hardsigmoid(z)),
    "glu": Row(8, lambda: Net(lambda m, x: m.last(F.glu(m.a(x), dim=1)), a=c2(3, 16, 1), last=c2(8, 4, 1))),
    "glu of what is not silent": two(lambda m, y, z: F.glu(torch.cat([torch.sigmoid(y), z], 1), dim=1)),
    "swiglu": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(F.silu((y := m.a(x)).chunk(2, 1)[0]) * y.chunk(2, 1)[1]),
            a=c2(3, 16, 1),
            last=c2(8, 4, 1),
        ),
    ),
    "dropout": between(lambda m, y: m.d(y), d=lambda: nn.Dropout2d()),
    "alpha dropout": between(lambda m, y: m.d(y), 8, d=lambda: nn.AlphaDropout()),
    "alpha dropout in eval mode": between(lambda m, y: F.alpha_dropout(y, training=False)),
}

ARITHMETIC = {
    "residual": between(lambda m, y: y + m.c(y), c=lambda: c2(8, 8, 1)),
    "residual in place": between(lambda m, y: m.c(y).add_(y), c=lambda: c2(8, 8, 1)),
    "add a number": between(lambda m, y: y + 1),
    "add nothing": between(lambda m, y: y + 0),
    "subtract from one": between(lambda m, y: 1 - y),
    "scale by a number": between(lambda m, y: 2 * y / 3 - y * 0.1),
    "scale per channel": between(lambda m, y: y * m.s, s=lambda: weight(1, 8, 1, 1)),
    "scale per channel, of shape (8,)": between(
        lambda m, y: (y.permute(0, 2, 3, 1) * m.s).permute(0, 3, 1, 2), s=lambda: weight(8)
    ),
    "shift per channel": between(lambda m, y: y + m.s, s=lambda: weight(8, 1, 1)),
    "scale of all": between(lambda m, y: y * m.s, s=lambda: weight(1)),
    "shift of all": between(lambda m, y: y + m.s, 8, s=lambda: weight(1)),
    "buffer per channel": between(
        lambda m, y: (y - m.mean) / m.std,
        0,
        "",
        mean=lambda: torch.rand(1, 8, 1, 1),
        std=lambda: torch.rand(1, 8, 1, 1) + 1,
    ),
    "buffer per channel, a factor": between(
        lambda m, y: (y - m.mean) * m.std, mean=lambda: torch.rand(1, 8, 1, 1), std=lambda: torch.rand(1, 8, 1, 1)
    ),
    "scale per place": between(lambda m, y: y * m.s, s=lambda: weight(1, 1, 8, 8)),
    "constant per channel": between(lambda m, y: y * torch.arange(8.0).view(1, 8, 1, 1).to(y), 0, "full size"),
    "layer scale of a branch": between(lambda m, y: y + m.s * m.c(y), c=lambda: c2(8, 8, 1), s=lambda: weight(8, 1, 1)),
    "repvgg": between(
        lambda m, y: F.relu(m.n(y) + m.n1(m.c1(y)) + m.n3(m.c3(y))),
        8 + 0,
        n=lambda: bn(8),
        n1=lambda: bn(8),
        n3=lambda: bn(8),
        c1=lambda: c2(8, 8, 1),
        c3=lambda: c2(8, 8, 3, padding=1),
    ),
    "product of two maps": two(lambda m, y, z: y * z),
    "product with a gate": two(lambda m, y, z: y * torch.sigmoid(z)),
    "sum with what is not silent": two(lambda m, y, z: y + torch.sigmoid(z)),
    "quotient": two(lambda m, y, z: y / (z.abs() + 1)),
    "quotient by what may be zero": two(lambda m, y, z: m.n(y / z), 0, "zero while masked", n=lambda: bn(8)),
    "maximum": two(lambda m, y, z: torch.maximum(y, z)),
    "max of two": two(lambda m, y, z: torch.max(y, z)),
    "max with a constant": between(lambda m, y: torch.max(y, m.s), 8, s=lambda: torch.zeros(1) + 0.1),
    "lerp": two(lambda m, y, z: torch.lerp(y, z, 0.3)),
    "addcmul": two(lambda m, y, z: torch.addcmul(y, y, z, value=0.3)),
    "power": between(lambda m, y: y.abs() ** 1.5),
    "power of nought": between(lambda m, y: m.n((y.abs() + 1) ** -1), n=lambda: bn(8)),
    "power of a number": between(lambda m, y: 2**y),
    "comparison": two(lambda m, y, z: y * (z > 0)),
    "comparison by itself": between(lambda m, y: (y >= 0).to(y)),
    "comparison with a map": two(lambda m, y, z: (y >= z).to(y)),
    "where": two(lambda m, y, z: torch.where(y > 0, y, z)),
    "where with a number": between(lambda m, y: torch.where(y > 0, y, 0.3)),
    "where with nought": between(lambda m, y: torch.where(y > 0, y, 0.0)),
    "where of numbers": between(lambda m, y: torch.where(y >= 0, 1.0, 0.0).to(y)),
    "masked_fill": two(lambda m, y, z: y.masked_fill(z > 0, 0)),
    "masked_fill with a number": two(lambda m, y, z: y.masked_fill(z > 0, 0.5)),
    "masked_fill of what is not silent": two(lambda m, y, z: torch.sigmoid(y).masked_fill(z.relu().bool(), 0)),
    "channels against places": Row(
        0,
        lambda: Net(
            lambda m, x: m.last((m.a(x).flatten(2) * m.b(x).flatten(2).transpose(1, 2)).unflatten(2, (2, 4))),
            a=c2(3, 8, 1),
            b=c2(3, 8, 1),
            last=c2(8, 4, 1),
        ),
        (2, 3, 2, 4),
        "",
    ),
    "atan2": two(lambda m, y, z: m.n(torch.atan2(y, z)), n=lambda: bn(8)),
    "detach and clone": between(lambda m, y: y.detach().clone()),
    "to another type and back": between(lambda m, y: y.double().to(y.dtype)),
}

REDUCTIONS = {
    "squeeze and excitation": between(
        lambda m, y: y * torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3), keepdim=True))))),
        8 + 3,
        down=lambda: c2(8, 3, 1),
        up=lambda: c2(3, 8, 1),
    ),
    "squeeze and excitation by linear": between(
        lambda m, y: y * torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3))))))[:, :, None, None],
        8 + 3,
        down=lambda: lin(8, 3),
        up=lambda: lin(3, 8),
    ),
    "efficient channel attention": between(
        lambda m, y: y * torch.sigmoid(m.c(y.mean((2, 3))[:, None]))[:, 0, :, None, None],
        0,
        "slides over",
        c=lambda: nn.Conv1d(1, 1, 3, padding=1, bias=False),
    ),
    "convolutional attention over places": between(
        lambda m, y: y * torch.sigmoid(m.c(y.sum(1, keepdim=True))), 8, c=lambda: c2(1, 1, 3, padding=1)
    ),
    "mean over channels": between(lambda m, y: y * y.mean(1, keepdim=True), 0, "reduced together"),
    "largest channel": between(lambda m, y: y * y.amax(1, keepdim=True), 0, "reduced together"),
    "sum over channels": between(lambda m, y: y * y.sum(1, keepdim=True)),
    "sum over channels that are not silent": between(lambda m, y: y * torch.sigmoid(y).sum(1, keepdim=True), 0, LEAK),
    "sum over everything": between(lambda m, y: y * y.sum()),
    "norm over channels": between(lambda m, y: y / (y.norm(dim=1, keepdim=True) + 1)),
    "smallest norm over channels": between(
        lambda m, y: y / (torch.linalg.vector_norm(y, ord=float("-inf"), dim=1, keepdim=True) + 1),
        0,
        "reduced together",
    ),
    "norm over places": between(lambda m, y: y / (y.norm(dim=(2, 3), keepdim=True) + 1)),
    "max over places": between(lambda m, y: y * y.flatten(2).max(2)[0][:, :, None, None]),
    "variance over places": between(lambda m, y: m.n(y.var((2, 3), keepdim=True) + y), n=lambda: bn(8)),
    "standard deviation and mean": between(
        lambda m, y: m.n((y - y.mean((2, 3), keepdim=True)) / (y.std((2, 3), keepdim=True) + 1)), n=lambda: bn(8)
    ),
    "global response norm": between(
        lambda m, y: y + m.s * (y * ((g := y.norm(dim=(2, 3), keepdim=True)) / (g.mean(1, keepdim=True) + 1))),
        0,
        "reduced together",
        s=lambda: weight(8, 1, 1),
    ),
    "argmax over places": between(lambda m, y: m.n(y.flatten(2).argmax(2)[:, :, None, None] * y), 8, n=lambda: bn(8)),
    "argmax over channels": between(lambda m, y: y * y.argmax(1, keepdim=True), 0, "reduced together"),
    "logsumexp over places": between(lambda m, y: m.n(y * y.logsumexp((2, 3), keepdim=True)), n=lambda: bn(8)),
    "product over places": between(lambda m, y: m.n(y.prod(3, keepdim=True) + y), n=lambda: bn(8)),
    "cumulative sum over channels": between(lambda m, y: y.cumsum(1), 0, "no row for"),
    "sorted channels": between(lambda m, y: y.sort(1)[0], 0, "no row for"),
    "best channels": between(lambda m, y: y.topk(8, 1)[0], 0, "no row for"),
    "sum over channels by their number": between(
        lambda m, y: y * (y.sum(1, keepdim=True) / y.shape[1]), 0, "number 8 is"
    ),
}

ROWS = {**ACTIVATIONS, **ARITHMETIC, **REDUCTIONS}


@pytest.mark.parametrize("name", cases(ROWS, {}))
def test_masked_is_compact(name: str) -> None:
    ROWS[name].hold()
