"""Weights that are used twice, tied, or looked up in tables: masked == compact, and exactly what may go is found."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.exactness import Net, Row, cases, weight

c2, lin = nn.Conv2d, nn.Linear
P = {"padding": 1}


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
        8,
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

COVERAGE: dict[str, str] = {}
ROWS = {**SHARED, **TABLES}


@pytest.mark.parametrize("name", cases(ROWS, COVERAGE))
def test_masked_is_compact(name: str) -> None:
    ROWS[name].hold()
