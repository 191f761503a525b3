"""Attention, fused and written out: masked == compact, and exactly the channels that may go are found."""

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from tests.exactness import Net, Row, cases

c1, c2, lin = nn.Conv1d, nn.Conv2d, nn.Linear


class Heads(nn.Module):
    """Attention over places written out, its sizes taken from the tensors."""

    def __init__(self, heads: int, dim: int, how: str) -> None:
        super().__init__()
        self.heads, self.how, self.head_dim = heads, how, dim // heads
        self.first, self.qkv, self.proj, self.last = lin(3, dim), lin(dim, 3 * dim), lin(dim, dim), lin(dim, 4)
        self.q, self.k, self.v = lin(dim, dim), lin(dim, dim), lin(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        n, t, _ = y.shape
        if self.how == "fused":
            q, k, v = self.qkv(y).reshape(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (f(y).view(n, t, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.how == "written out":
            z = ((q @ k.transpose(-1, -2)) * self.head_dim**-0.5).softmax(-1) @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v)
        return self.last(self.proj(z.transpose(1, 2).reshape(n, t, -1)))


ATTENTION = {
    "one head, scaled by its size": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(((q := m.q(x)) @ m.k(x).mT * q.shape[-1] ** -0.5).softmax(-1) @ m.v(x)),
            q=lin(3, 8),
            k=lin(3, 8),
            v=lin(3, 8),
            last=lin(8, 4),
        ),
        (2, 5, 3),
        stays="the number 0.3536 is computed from it",
    ),
    "sdpa in heads": Row(8 + 4 + 8, lambda: Heads(4, 8, "sdpa"), (2, 5, 3)),
    "attention written out": Row(8 + 4 + 8, lambda: Heads(4, 8, "written out"), (2, 5, 3)),
    "attention with fused qkv": Row(8 + 4 + 8, lambda: Heads(4, 8, "fused"), (2, 5, 3)),
    "sdpa with one head": Row(
        8 + 8,
        lambda: Net(
            lambda m, x: m.last(F.scaled_dot_product_attention(m.q(y := m.first(x)), m.k(y), m.v(y))),
            first=lin(3, 8),
            q=lin(8, 6),
            k=lin(8, 6),
            v=lin(8, 8),
            last=lin(8, 4),
        ),
        (2, 5, 3),
        stays="the scale of attention",
    ),
    "sdpa with a scale of its own": Row(
        8 + 6 + 8,
        lambda: Net(
            lambda m, x: m.last(F.scaled_dot_product_attention(m.q(y := m.first(x)), m.k(y), m.v(y), scale=0.3)),
            first=lin(3, 8),
            q=lin(8, 6),
            k=lin(8, 6),
            v=lin(8, 8),
            last=lin(8, 4),
        ),
        (2, 5, 3),
    ),
    "sdpa over channels": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))),
            q=c1(3, 8, 1),
            k=c1(3, 6, 1),
            v=c1(3, 6, 1),
            last=c1(8, 4, 1),
        ),
        (2, 3, 9),
        stays="softmax",
    ),
    "attention over channels": Row(
        8,
        lambda: Net(
            lambda m, x: m.last((m.q(x) @ m.k(x).transpose(1, 2)).softmax(-1) @ m.v(x)),
            q=c1(3, 8, 1),
            k=c1(3, 6, 1),
            v=c1(3, 6, 1),
            last=c1(8, 4, 1),
        ),
        (2, 3, 9),
        stays="a softmax runs over these channels",
    ),
    "nn.MultiheadAttention": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.att(y := m.first(x), y, y, need_weights=False)[0]),
            first=lin(3, 8),
            att=nn.MultiheadAttention(8, 2, batch_first=True),
            last=lin(8, 4),
        ),
        (2, 5, 3),
    ),
    "non-local block": Row(
        8 + 6 + 6,
        lambda: Net(
            lambda m, x: m.last(
                (y := m.first(x))
                + m.w(
                    (m.q(y).flatten(2).transpose(1, 2) @ m.k(y).flatten(2))
                    .softmax(-1)
                    .matmul(m.v(y).flatten(2).transpose(1, 2))
                    .transpose(1, 2)
                    .unflatten(2, (4, 4))
                )
            ),
            first=c2(3, 8, 1),
            q=c2(8, 6, 1),
            k=c2(8, 6, 1),
            v=c2(8, 6, 1),
            w=c2(6, 8, 1),
            last=c2(8, 4, 1),
        ),
        (2, 3, 4, 4),
    ),
}

ROWS = {**ATTENTION}


@pytest.mark.parametrize("name", cases(ROWS, {}))
def test_masked_is_compact(name: str) -> None:
    ROWS[name].hold()
