"""Movement and places, a network each: masked == compact, and exactly the channels that may go are found."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.exactness import Net, Row, cases
from tests.test_ops_values import between, two

c1, c2, c3, lin, bn = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm2d


def shuffled(y: Tensor, groups: int) -> Tensor:
    n, c, h, w = y.shape
    return y.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def wide(body: object, channels: int, out: int, stays: str = "", first: int = 8) -> Row:
    """`body(y)` between a convolution from 3 to `first` channels and one from `out` to 4."""

    def forward(net: Net, x: Tensor) -> Tensor:
        result: Tensor = net.last(body(net.first(x)))  # type: ignore[operator]
        return result

    return Row(channels, lambda: Net(forward, first=c2(3, first, 3, padding=1), last=c2(out, 4, 1)), stays=stays)


def put(y: Tensor, z: Tensor) -> Tensor:
    """A new map of zeros, filled half by half."""
    both = y.new_zeros(y.shape[0], y.shape[1] + z.shape[1], *y.shape[2:])
    both[:, : y.shape[1]] = y
    both[:, y.shape[1] :] = z
    return both


MOVES = {
    "shuffle": wide(lambda y: shuffled(y, 2), 4, 8),
    "shuffle of more groups than positions": wide(lambda y: shuffled(y, 4), 0, 8, "written in Python"),
    "channel_shuffle": wide(lambda y: F.channel_shuffle(y, 2), 4, 8),
    "pixel_shuffle": wide(lambda y: F.pixel_shuffle(y, 2), 2, 2),
    "pixel_unshuffle": wide(lambda y: F.pixel_unshuffle(y, 2), 8, 32),
    "space to depth by slices": wide(
        lambda y: torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]], 1), 8, 32
    ),
    "space to depth by view": wide(lambda y: y.view(2, -1, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).flatten(1, 3), 8, 32),
    "depth to space by view": wide(
        lambda y: y.unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2).flatten(2, 3).flatten(3, 4), 2, 2
    ),
    "flip places": between(lambda m, y: y.flip(3)),
    "flip channels": between(lambda m, y: y.flip(1)),
    "roll places": between(lambda m, y: y.roll((2, 1), (2, 3))),
    "roll channels": between(lambda m, y: y.roll(3, 1), 0, "is rolled"),
    "roll channels all the way": between(lambda m, y: y.roll(8, 1)),
    "rot90 places": between(lambda m, y: y.rot90(1, (2, 3))),
    "transpose places": between(lambda m, y: y.mT),
    "channels last and back": between(lambda m, y: y.permute(0, 2, 3, 1).contiguous().movedim(-1, 1)),
    "squeeze and unsqueeze": between(lambda m, y: y.unsqueeze(2).squeeze(2)),
    "squeeze of a single place": Row(
        6, lambda: Net(lambda m, x: m.last(m.first(x).squeeze()), first=c2(3, 8, 8), last=lin(8, 4))
    ),
    "flatten, unflatten": between(lambda m, y: y.flatten(1, 2).unflatten(1, (-1, 8))),
    "patches": wide(lambda y: F.unfold(y, 3, padding=1).unflatten(2, (8, 8)), 8, 72),
    "windows": between(lambda m, y: y.view(2, -1, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(8, -1, 4, 4)),
    "patches by unfold": wide(
        lambda y: y.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).flatten(1, 3), 8, 32
    ),
    "channels as batch": Row(
        2,
        lambda: Net(
            lambda m, x: m.last(m.mid(m.first(x).flatten(0, 1)[:, None]).unflatten(0, (2, -1)).flatten(1, 2)),
            first=c2(3, 8, 1),
            mid=c2(1, 2, 3),
            last=c2(16, 4, 1),
        ),
    ),
    "repeat": wide(lambda y: y.repeat(1, 2, 1, 1), 8, 16),
    "repeat_interleave": wide(lambda y: y.repeat_interleave(2, 1), 8, 16),
    "expand": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.first(x).mean((2, 3), keepdim=True).expand(-1, -1, 5, 5)),
            first=c2(3, 8, 1),
            last=c2(8, 4, 3),
        ),
    ),
    "expand_as": between(lambda m, y: y * y.mean((2, 3), keepdim=True).expand_as(y)),
    "diagonal of places": Row(
        8, lambda: Net(lambda m, x: m.last(m.first(x).diagonal(0, 2, 3)), first=c2(3, 8, 1), last=c1(8, 4, 1))
    ),
}

PARTS = {
    "cat": two(lambda m, y, z: torch.cat([y, z], 1), 16, last=lambda: c2(16, 4, 1)),
    "cat the other way round": two(lambda m, y, z: torch.cat([z, y], 1), 16, last=lambda: c2(16, 4, 1)),
    "cat with itself": two(lambda m, y, z: torch.cat([y, z, y], 1), 16, last=lambda: c2(24, 4, 1)),
    "cat with the input": Row(
        8, lambda: Net(lambda m, x: m.last(torch.cat([x, m.first(x)], 1)), first=c2(3, 8, 1), last=c2(11, 4, 1))
    ),
    "cat with a constant": between(
        lambda m, y: torch.cat([y, torch.ones(2, 2, 8, 8).to(y)], 1), last=lambda: c2(10, 4, 1)
    ),
    "cat of places": two(lambda m, y, z: torch.cat([y, z], 2)),
    "cat of batches": two(lambda m, y, z: torch.cat([y, z], 0)),
    "cat, then a sum": two(
        lambda m, y, z: torch.cat([y, z], 1) + m.c(y), 16, c=lambda: c2(8, 16, 1), last=lambda: c2(16, 4, 1)
    ),
    "cat of a part": two(lambda m, y, z: torch.cat([y, z.chunk(2, 1)[1]], 1), 8 + 4, last=lambda: c2(12, 4, 1)),
    "chunk": between(lambda m, y: torch.cat(y.chunk(2, 1)[::-1], 1), 4),
    "chunk, one half goes on": between(
        lambda m, y: torch.cat([(p := y.chunk(2, 1))[0], m.c(p[1])], 1), 4 + 4, c=lambda: c2(4, 4, 1)
    ),
    "chunk in the middle of a pair that a shuffle made": wide(
        lambda y: torch.cat(shuffled(y, 2).chunk(2, 1)[::-1], 1), 3, 10, first=10
    ),
    "uneven chunk": between(lambda m, y: torch.cat(y.chunk(3, 1)[::-1], 1), 0, "unequal size"),
    "split by a number": between(lambda m, y: torch.cat(y.split(4, 1)[::-1], 1), 0, "written in Python"),
    "split by the size of the tensor": between(lambda m, y: torch.cat(y.split(y.shape[1] // 2, 1)[::-1], 1), 4),
    "split by numbers written in Python": between(
        lambda m, y: torch.cat(y.split((2, 6), 1)[::-1], 1), 0, "written in Python"
    ),
    "split by sizes of the module": between(lambda m, y: torch.cat(y.split(m.sizes, 1)[::-1], 1), 8, sizes=(2, 6)),
    "tensor_split": between(lambda m, y: torch.cat(y.tensor_split(2, 1)[::-1], 1), 4),
    "slices by the size of the tensor": between(
        lambda m, y: torch.cat([y[:, y.shape[1] // 2 :], y[:, : y.shape[1] // 2]], 1), 0
    ),
    "slices by a size of the module": between(lambda m, y: torch.cat([y[:, m.part :], y[:, : m.part]], 1), 8, part=3),
    "slices by numbers": between(lambda m, y: torch.cat([y[:, 4:], y[:, :4]], 1), 0, "written in Python"),
    "slice of two in the middle": between(lambda m, y: y * y[:, 3:5].sum(1, keepdim=True), 0, "written in Python"),
    "slice of one in the middle": between(lambda m, y: y * y[:, 3:4], 4, "by its number"),
    "a single channel": between(lambda m, y: y * y[:, 3, None], 4, "by its number"),
    "the first channel": between(lambda m, y: y * y[:, 0, None], 7),
    "the last channel": between(lambda m, y: y * y[:, -1, None], 7),
    "every other channel": between(lambda m, y: y[:, ::2], 0, "every n-th channel", last=lambda: c2(4, 4, 1)),
    "narrow by numbers": between(
        lambda m, y: torch.cat([y.narrow(1, 2, 6), y.narrow(1, 0, 2)], 1), 0, "written in Python"
    ),
    "channels by a list": between(lambda m, y: y[:, [0, 2, 4, 6, 1, 3, 5, 7]], 0, "is indexed by a tensor"),
    "places by a list": between(lambda m, y: y[:, :, [0, 2, 1]]),
    "places by a mask": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(m.first(x).permute(0, 2, 3, 1)[x[:, 0] > 0]), first=c2(3, 8, 1), last=lin(8, 4)
        ),
    ),
    "index_select of places": between(lambda m, y: y.index_select(3, torch.tensor([1, 1, 0]))),
    "unbind": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(torch.relu((p := m.first(x).unflatten(1, (2, -1)).unbind(1))[0]) + p[1]),
            first=c2(3, 16, 1),
            last=c2(8, 4, 1),
        ),
    ),
    "stack": two(lambda m, y, z: torch.stack([y, z], 1).sum(1)),
    "stack, then flatten": two(lambda m, y, z: torch.stack([y, z], 1).flatten(1, 2), 8, last=lambda: c2(16, 4, 1)),
    "stack in turn": two(lambda m, y, z: torch.stack([y, z], 2).flatten(1, 2), 8, last=lambda: c2(16, 4, 1)),
    "stack with nothing": two(lambda m, y, z: torch.stack([y, torch.zeros_like(y)], 1).sum(1) + z),
    "c2f": between(
        lambda m, y: torch.cat([*(p := y.chunk(2, 1)), q := m.a(p[1]), m.b(q)], 1),
        4 + 4 + 4,
        a=lambda: c2(4, 4, 3, padding=1),
        b=lambda: c2(4, 4, 3, padding=1),
        last=lambda: c2(16, 4, 1),
    ),
    "written half by half": two(lambda m, y, z: put(y, z), 0, "", last=lambda: c2(16, 4, 1)),
}


def in_view(y: Tensor) -> Tensor:
    """Changes half of the channels in place, through a view of a view."""
    y.view(2, 2, 4, 8, 8)[:, 1].sigmoid_()
    return y


def of_places(y: Tensor) -> Tensor:
    """Changes some places in place."""
    y[:, :, 1:3].mul_(2)
    y[:, :, 0] = 0
    return y


WRITES = {
    "in place on a view of all": between(lambda m, y: (y.view(2, -1).relu_(), y)[1]),
    "sigmoid on a view of half": between(lambda m, y: in_view(y), 0, "is also read through another view"),
    "places through a view": between(lambda m, y: of_places(y)),
    "sigmoid on a view of all": between(lambda m, y: (y.view(2, -1).sigmoid_(), y)[1], 0),
    "added to through a view": two(lambda m, y, z: (y.view(2, -1, 64).add_(z.flatten(2)), y)[1]),
    "index_put of places": two(
        lambda m, y, z: (
            y.permute(2, 3, 0, 1)
            .contiguous()
            .index_put((torch.tensor([0, 1]),), z.permute(2, 3, 0, 1)[:2])
            .permute(2, 3, 0, 1)
        )
    ),
    "copied over": two(lambda m, y, z: y.copy_(z) + 0, 8),
    "filled with nought": two(lambda m, y, z: y.zero_() + z),
    "filled with one": two(lambda m, y, z: y.fill_(1.0) + z),
}

PLACES = {
    "max pool": between(lambda m, y: F.max_pool2d(y, 3, 2, 1)),
    "max pool with indices": between(lambda m, y: F.max_pool2d(y, 2, return_indices=True)[0]),
    "average pool": between(lambda m, y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)),
    "adaptive pools": between(lambda m, y: F.adaptive_avg_pool2d(y, 3) + F.adaptive_max_pool2d(y, 3)),
    "lp pool": between(lambda m, y: F.lp_pool2d(y.abs(), 2.0, 2)),
    "pool over channels": Row(
        0,
        lambda: Net(lambda m, x: m.last(F.max_pool1d(m.first(x), 2)), first=lin(3, 8), last=lin(4, 4)),
        (2, 5, 3),
        "not of channels",
    ),
    "pool 1d": Row(8, lambda: nn.Sequential(c1(3, 8, 3), nn.MaxPool1d(2), nn.AvgPool1d(2), c1(8, 4, 1)), (2, 3, 16)),
    "pool 3d": Row(
        8, lambda: nn.Sequential(c3(3, 8, 1), nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(1), c3(8, 4, 1)), (1, 3, 4, 4, 4)
    ),
    "max unpool": Row(
        0,
        lambda: Net(
            lambda m, x: m.last(F.max_unpool2d(*F.max_pool2d(m.first(x), 2, return_indices=True), 2)),
            first=c2(3, 8, 1),
            last=c2(8, 4, 1),
        ),
        stays="no row for",
    ),
    **{
        f"upsample {mode}": between(lambda m, y, mode=mode: F.interpolate(y, scale_factor=2.0, mode=mode))
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
    },
    "upsample to a size": between(lambda m, y: F.interpolate(y, size=(5, 7), mode="bilinear", antialias=True)),
    "upsample 1d": Row(
        8, lambda: nn.Sequential(c1(3, 8, 3), nn.Upsample(scale_factor=2, mode="linear"), c1(8, 4, 1)), (2, 3, 9)
    ),
    "upsample 3d": Row(
        8,
        lambda: nn.Sequential(c3(3, 8, 1), nn.Upsample(scale_factor=2, mode="trilinear"), c3(8, 4, 1)),
        (1, 3, 3, 3, 3),
    ),
    "pad with zeros": between(lambda m, y: F.pad(y, (1, 2, 0, 1))),
    "pad with ones": between(lambda m, y: F.pad(y, (1, 1), value=1.0)),
    "pad, then a norm": between(lambda m, y: m.n(F.pad(y, (1, 1), value=1.0)), n=lambda: bn(8)),
    "reflect": between(lambda m, y: F.pad(y, (1, 1, 1, 1), mode="reflect")),
    "replicate": between(lambda m, y: F.pad(y, (1, 1, 1, 1), mode="replicate")),
    "crop by a negative pad": between(lambda m, y: F.pad(y, (-1, -1, 0, 0))),
    "pad channels with zeros": between(lambda m, y: F.pad(y, (0, 0, 0, 0, 1, 2)), last=lambda: c2(11, 4, 1)),
    "pad channels, then a sum": two(
        lambda m, y, z: F.pad(y, (0, 0, 0, 0, 0, 4)) + m.c(z), 8 + 8, c=lambda: c2(8, 12, 1), last=lambda: c2(12, 4, 1)
    ),
    "pad channels with ones": between(
        lambda m, y: F.pad(y, (0, 0, 0, 0, 1, 2), value=1.0), 0, "padded along the channels", last=lambda: c2(11, 4, 1)
    ),
    "grid_sample": between(
        lambda m, y: F.grid_sample(y, m.grid.to(y), align_corners=False), grid=lambda: torch.rand(2, 5, 5, 2) * 2 - 1
    ),
    "grid from the network": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(F.grid_sample(m.first(x), m.grid(x).permute(0, 2, 3, 1).tanh(), align_corners=False)),
            first=c2(3, 8, 1),
            grid=c2(3, 2, 1),
            last=c2(8, 4, 1),
        ),
        stays="is used as coordinates",
    ),
    "roi_align": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(torchvision.ops.roi_align(m.first(x), [x.new_tensor([[0, 0, 4, 4.0]])] * 2, 3)),
            first=c2(3, 8, 1),
            last=c2(8, 4, 1),
        ),
    ),
    "roi_pool": Row(
        8,
        lambda: Net(
            lambda m, x: m.last(torchvision.ops.roi_pool(m.first(x), [x.new_tensor([[0, 0, 4, 4.0]])] * 2, 3)),
            first=c2(3, 8, 1),
            last=c2(8, 4, 1),
        ),
    ),
    "ps_roi_align": Row(
        0,
        lambda: Net(
            lambda m, x: m.last(torchvision.ops.ps_roi_align(m.first(x), [x.new_tensor([[0, 0, 4, 4.0]])] * 2, 2)),
            first=c2(3, 8, 1),
            last=c2(2, 4, 1),
        ),
        stays="no row for",
    ),
}

ROWS = {**MOVES, **PARTS, **WRITES, **PLACES}


@pytest.mark.parametrize("name", cases(ROWS, {}))
def test_masked_is_compact(name: str) -> None:
    ROWS[name].hold()
