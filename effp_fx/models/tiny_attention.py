"""Tiny nets whose hard case is a norm over several channels, or attention."""

# mypy: disable-error-code="no-any-return"
# A module call is typed Any; the annotations of forward are for the reader.
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effp_fx.models.tiny import Head, TinyNet, conv


class GroupNorm(TinyNet):
    """Group norm: a channel's removal changes the statistics of its group, so groups go as a whole or not at all."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.first, self.second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, width), nn.GroupNorm(1, width)])
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.first(x)).relu()
        return self.head(self.norms[1](self.second(x)).relu())


class InstanceNorm(TinyNet):
    """Instance norm with scales: statistics are per channel, but computed on the input also in eval mode."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.first, self.second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.InstanceNorm2d(width, affine=True) for _ in range(2))
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.first(x)).relu()
        return self.head(x + self.norms[1](self.second(x)).relu())


class LayerScale(TinyNet):
    """ConvNeXt: depthwise, layer norm with the channels last, an expanding linear layer, a scale of 1e-6, a sum."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem, self.depthwise = nn.Conv2d(3, width, 2, 2), nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.expand, self.project = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(F.gelu(self.expand(y))).permute(0, 3, 1, 2)
        return self.head(x + self.gamma * y)


class StandardisedConv2d(nn.Conv2d):
    """Convolution whose filters have mean zero and variance one: a parameter that is computed on before its use."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (variance + 1e-5).sqrt(), self.bias, self.stride, self.padding)


class WeightStandardisation(TinyNet):
    """Each filter is standardised over its inputs, so that removing an input would change all of the filter."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.first, self.second = (StandardisedConv2d(c, width, 3, padding=1) for c in (3, width))
        self.last = conv(width, width)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.second(self.first(x).relu()).relu()))


class TransposedWeight(TinyNet):
    """A parameter stored as (inputs, outputs) that is transposed and reshaped before it is used."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem, self.after = conv(3, width), conv(width, width)
        self.table = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.stem(x), self.table.t()[:, :, None, None]).relu()
        return self.head(self.after(x))


class HeadedAttention(TinyNet):
    """Four heads from one linear layer, by view and permute, with integers for their number and size."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.heads, self.head_dim = 4, width // 4
        self.stem, self.qkv, self.project = conv(3, width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.stem(x), 4).flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        weights = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.project((weights @ v).transpose(1, 2).reshape(batch, tokens, self.heads * self.head_dim))
        return self.head(x.mean(1))


class FusedAttention(TinyNet):
    """scaled_dot_product_attention, queries from one tensor, keys and values from another, a table of positions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.heads = 2
        self.stem, self.queries = conv(3, width), nn.Embedding(6, width)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.box = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        memory = F.avg_pool2d(self.stem(x), 4).flatten(2).transpose(1, 2)
        queries = self.queries.weight.expand(len(x), -1, -1)
        q, k, v = self.split(self.q(queries)), self.split(self.k(memory + self.positions)), self.split(self.v(memory))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.box((queries + self.out(y)).relu()).sigmoid()

    def split(self, x: Tensor) -> Tensor:
        """Heads to their own dimension: (N, T, C) to (N, heads, T, C / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class TorchAttention(TinyNet):
    """nn.MultiheadAttention inside nn.TransformerEncoderLayer: one weight holds query, key and value."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem = conv(3, width)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.stem(x), 4).flatten(2).transpose(1, 2)
        return self.head(self.encoder(x).mean(1))


class ConvAttention(TinyNet):
    """YOLO's attention: heads by convolution, the key narrower than the value, a depthwise positional term."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.num_heads, self.head_dim, self.key_dim = 2, width // 2, width // 4
        self.stem = conv(3, width, stride=2)
        self.qkv = conv(width, 2 * width, 1, act=False)
        self.position = conv(width, width, act=False, groups=width)
        self.project = conv(width, width, 1, act=False)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        heads = self.qkv(x).view(n, self.num_heads, 2 * self.key_dim + self.head_dim, h * w)
        q, k, v = heads.split([self.key_dim, self.key_dim, self.head_dim], 2)
        weights = (q.transpose(-2, -1) @ k * self.key_dim**-0.5).softmax(-1)
        y = (v @ weights.transpose(-2, -1)).view(n, c, h, w) + self.position(v.reshape(n, c, h, w))
        return self.head(x + self.project(y))


class EinsumAttention(TinyNet):
    """Attention over channels by einsum, and a mixture in which a softmax runs over channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.stem, self.keys, self.values = conv(3, width), nn.Conv2d(width, 8, 1), nn.Conv2d(width, width, 1)
        self.mixture, self.after = nn.Conv2d(width, width, 1), conv(width, width)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        keys, values = self.keys(x).flatten(2).softmax(-1), self.values(x).flatten(2)
        context = torch.einsum("nkt,nvt->nkv", keys, values)
        x = x + torch.einsum("nkt,nkv->nvt", keys, context).view_as(x)
        return self.head(self.after(x * self.mixture(x).softmax(1)))


NETS: dict[str, type[TinyNet]] = {
    "group_norm": GroupNorm,
    "instance_norm": InstanceNorm,
    "layer_scale": LayerScale,
    "weight_standardisation": WeightStandardisation,
    "transposed_weight": TransposedWeight,
    "headed_attention": HeadedAttention,
    "fused_attention": FusedAttention,
    "torch_attention": TorchAttention,
    "conv_attention": ConvAttention,
    "einsum_attention": EinsumAttention,
}
