"""Breaks rules of the compiler on purpose, one at a time: masked == compact has to catch each of them.

A mutation counts as caught where masked and compact differ, or where the compact model does not run. Each stands
beside the network that it is caught on; unbroken, the network is exact, or a catch would prove nothing. Trial lowering
is off here: it is a second net, and would freeze what some of these break.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from effp_fx import grouping, interpret, tracing
from effp_fx.errors import EffpError
from effp_fx.ops import convolution, elementwise, movement, normalisation, spatial, table
from effp_fx.ops.context import Call, Context, line_facet
from effp_fx.ops.shadow import absolute, varying
from tests.exactness import EXACT, Net, Row

c2, bn = nn.Conv2d, nn.BatchNorm2d
Patch = pytest.MonkeyPatch


def row(patch: Patch, name: str, rule: Any) -> None:
    """Give an op another rule."""
    patch.setitem(table._ROWS, f"aten.{name}", replace(table._ROWS[f"aten.{name}"], rule=rule))


def passing(_context: Context, call: Call) -> Any:
    """A rule that hands every facet on as if nothing had happened."""
    return list(call.inputs[0].facets)


def dropped_union(patch: Patch) -> None:
    def pair(context: Context, call: Call, left: Any, right: Any, kind: str) -> Any:
        return left

    patch.setattr(elementwise, "_pair", pair)


def reversed_concat(patch: Patch) -> None:
    right = movement.joined

    def rule(context: Context, call: Call) -> Any:
        call.arguments["tensors"] = call.arguments["tensors"][::-1]
        return right(context, call)

    row(patch, "cat", rule)


def unpinned_output(patch: Patch) -> None:
    patch.setattr(interpret.Interpretation, "_freeze_outputs", lambda *_: None)


def wrong_stride(patch: Patch) -> None:
    """A reshape that runs through the elements column by column."""

    def rule(context: Context, call: Call) -> Any:
        facets = call.inputs[0].facets
        return [facet.reshape(call.out.shape[0], -1).flip(1).reshape(call.out.shape) for facet in facets]

    for name in ("reshape", "flatten"):
        row(patch, name, rule)


def untransposed(patch: Patch) -> None:
    """A transpose that leaves the ids where they are."""

    def rule(context: Context, call: Call) -> Any:
        return [facet.reshape(call.out.shape) for facet in call.inputs[0].facets]

    row(patch, "transpose", rule)


def silent_sigmoid(patch: Patch) -> None:
    row(patch, "sigmoid", elementwise._unary(1))


def silent_shift(patch: Patch) -> None:
    """Adding a number leaves zero alone."""
    row(patch, "add", lambda context, call: [*call.inputs[0].facets])


def unread_zeros(patch: Patch) -> None:
    """A layer does not ask whether what it reads is zero."""
    patch.setattr(Context, "read", lambda self, call, channels, weights: channels.abs())


def loose_groups(patch: Patch) -> None:
    """A group norm whose statistics do not tie channels."""

    def rule(context: Context, call: Call) -> Any:
        channels = context.vector(call, call.shadow(call["input"]), 1)
        return normalisation._affine(context, call, channels, 1, (), centred=True)

    row(patch, "group_norm", rule)


def untied_groups(patch: Patch) -> None:
    """A grouped convolution that is taken for a dense one on the side it hands out."""

    def grouped(
        context: Context, call: Call, channels: Any, read: Any, made: Any, groups: int, transposed: bool
    ) -> Any:
        convolution._dense(context, call, None if channels is None else channels.reshape(groups, -1)[0], read, made)
        return made

    patch.setattr(convolution, "_grouped", grouped)


def unmasked_bias(patch: Patch) -> None:
    right = grouping._tensors

    def tensors(*args: Any) -> Any:
        return {
            name: replace(dims, masked=frozenset()) if name.endswith("bias") else dims
            for name, dims in right(*args).items()
        }

    patch.setattr(grouping, "_tensors", tensors)


def softmax_passes(patch: Patch) -> None:
    row(patch, "softmax", passing)


def layer_norm_passes(patch: Patch) -> None:
    row(patch, "layer_norm", lambda context, call: [absolute(facet) for facet in call.shadow(call["input"]).facets])


def mean_passes(patch: Patch) -> None:
    """A mean over channels that is taken for one over places."""

    def rule(context: Context, call: Call) -> Any:
        return [facet.narrow(1, 0, 1) for facet in call.inputs[0].facets if 1 not in varying(facet)]

    row(patch, "mean", rule)


def rolled_like_any_move(patch: Patch) -> None:
    row(patch, "roll", movement.rearranged)


def counted_like_any_cut(patch: Patch) -> None:
    row(patch, "select", movement.cut)


def shuffled_like_any_move(patch: Patch) -> None:
    row(
        patch,
        "pixel_shuffle",
        lambda context, call: line_facet(call.inputs[0].facets[0][0, ::4, 0, 0], 1, call.out.shape),
    )


def padded_one_off(patch: Patch) -> None:
    """Padding in front of the channels that is taken for padding behind them."""
    right = spatial.padded

    def rule(context: Context, call: Call) -> Any:
        before = call.arguments["pad"][-2]
        return [facet.roll(-before, 1) for facet in right(context, call)]

    row(patch, "pad", rule)
    row(patch, "constant_pad_nd", rule)


def tied_table_only_read(patch: Patch) -> None:
    patch.setattr(interpret.Interpretation, "_show_weights", lambda *_: None)


def forgotten_statistics(patch: Patch) -> None:
    """Channels of a batch norm do not take its shift along as silent: it is handed on as zero without a mask on it."""
    right = grouping._tensors

    def tensors(*args: Any) -> Any:
        return {
            name: replace(dims, masked=frozenset()) if name.startswith("1.") else dims
            for name, dims in right(*args).items()
        }

    patch.setattr(grouping, "_tensors", tensors)


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


def gated() -> nn.Module:
    return Net(lambda m, x: m.last(m.a(x) + m.b(x)), a=c2(3, 8, 1), b=c2(3, 8, 1), last=c2(8, 4, 1))


def branches() -> nn.Module:
    return Net(
        lambda m, x: m.last(torch.cat([m.a(x), m.b(x)], 1)), a=c2(3, 8, 1), b=c2(3, 8, 3, padding=1), last=c2(16, 4, 1)
    )


def shuffled() -> nn.Module:
    def forward(m: Any, x: Any) -> Any:
        n, c, h, w = (y := m.first(x)).shape
        return m.last(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    return Net(forward, first=c2(3, 8, 1), last=c2(8, 4, 1))


def tied_table() -> nn.Module:
    table_, head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
    head.weight = table_.weight
    return Net(
        lambda m, x: m.head(torch.relu(m.mid(m.table((x[:, 0, 0] > 0).long())))),
        table=table_,
        mid=nn.Linear(8, 8),
        head=head,
    )


def between(body: Any, last: int = 8, **parts: Any) -> Callable[[], nn.Module]:
    return lambda: Net(lambda m, x: m.last(body(m, m.first(x))), first=c2(3, 8, 1), last=c2(last, 4, 1), **parts)


def softmax_net() -> nn.Module:
    return nn.Sequential(c2(3, 8, 1), nn.Softmax(1), bn(8), c2(8, 4, 1))


MUTATIONS: dict[str, tuple[Callable[[Patch], None], Callable[[], nn.Module]]] = {
    "dropped union": (dropped_union, gated),
    "reversed concat": (reversed_concat, branches),
    "unpinned output": (unpinned_output, chain(c2(3, 8, 1), nn.ReLU(), c2(8, 4, 1))),
    "wrong stride of a reshape": (wrong_stride, lambda: nn.Sequential(c2(3, 8, 1), nn.Flatten(), nn.Linear(512, 4))),
    "transpose that is none": (untransposed, shuffled),
    "sigmoid keeps zero": (silent_sigmoid, lambda: nn.Sequential(c2(3, 8, 1), nn.Sigmoid(), c2(8, 4, 1))),
    "shift keeps zero": (silent_shift, between(lambda m, y: y + 1)),
    "reader does not look": (unread_zeros, lambda: nn.Sequential(c2(3, 8, 1), nn.Hardsigmoid(), c2(8, 4, 1))),
    "group norm without whole groups": (
        loose_groups,
        lambda: nn.Sequential(c2(3, 8, 1), nn.GroupNorm(2, 8), c2(8, 4, 1)),
    ),
    "grouped convolution untied": (
        untied_groups,
        lambda: nn.Sequential(c2(3, 8, 1), c2(8, 8, 1, groups=2), c2(8, 4, 1)),
    ),
    "bias not masked": (unmasked_bias, chain(c2(3, 8, 1), nn.ReLU(), c2(8, 4, 1))),
    "softmax passes channels": (softmax_passes, softmax_net),
    "layer norm passes channels": (layer_norm_passes, between(lambda m, y: m.n(y.mT).mT, n=nn.LayerNorm(8))),
    "mean over channels": (mean_passes, between(lambda m, y: y * y.mean(1, keepdim=True))),
    "roll over channels": (rolled_like_any_move, between(lambda m, y: y.roll(3, 1))),
    "a channel by its number": (counted_like_any_cut, between(lambda m, y: y * y[:, 3, None])),
    "pixel shuffle of one channel in four": (
        shuffled_like_any_move,
        between(lambda m, y: nn.functional.pixel_shuffle(y, 2), 2),
    ),
    "padding one off": (padded_one_off, between(lambda m, y: nn.functional.pad(y, (0, 0, 0, 0, 1, 2)), 11)),
    "a tied table is only read": (tied_table_only_read, tied_table),
    "norm not masked": (forgotten_statistics, lambda: nn.Sequential(c2(3, 8, 1), bn(8), nn.ReLU(), c2(8, 4, 1))),
}


def caught(build: Callable[[], nn.Module]) -> bool:
    """Whether the property fails on this network."""
    try:
        report = Row(0, build).judge()
    except (EffpError, RuntimeError, ArithmeticError, LookupError, ValueError, AssertionError):
        return True
    return report.error > EXACT


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_rule_is_caught(name: str, monkeypatch: Patch) -> None:
    mutate, build = MUTATIONS[name]
    monkeypatch.setattr(tracing.Tracing, "settle", lambda *_: None)
    assert not caught(build), "the network is not exact to begin with"
    mutate(monkeypatch)
    assert caught(build), "the property does not see this"
