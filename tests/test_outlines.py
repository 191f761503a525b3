"""Outlines: what is not computed has the shape of what would be, and a model that reads a value is given it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from effp_fx import graph, outlines, tracing
from effp_fx.capture import capture, replay
from effp_fx.inputs import Example
from effp_fx.models.registry import build
from effp_fx.outlines import Values
from tests.exactness import Net, prepared

MAP = torch.rand(2, 8, 9, 11)


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *inputs: Tensor) -> Any:
        return self.fn(*inputs)


def run(module: nn.Module, *inputs: Tensor, shapes_only: bool) -> Any:
    """The output in train mode; a convolution comes first, whose result is an outline with `shapes_only`."""
    done = replay(module, Example(inputs), lambda *_: None, train=True, shapes_only=shapes_only)
    assert done.error is None, done.error
    return done.output


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(8, 6, 3, 2, 1, groups=2), (2, 8, 9)),
        (nn.Conv2d(8, 12, (3, 5), (2, 1), (1, 2), dilation=(2, 1), groups=4), MAP.shape),
        (nn.Conv2d(8, 12, 3), MAP.shape[1:]),
        (nn.Conv3d(3, 4, 3, padding=1), (1, 3, 4, 5, 6)),
        (nn.ConvTranspose1d(4, 6, 3, 2, 1, output_padding=1, groups=2), (2, 4, 5)),
        (nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), (1, 0), dilation=(1, 2)), (1, 4, 5, 5)),
        (nn.Linear(5, 7), (2, 3, 5)),
        (nn.Linear(5, 7, bias=False), (5,)),
    ],
    ids=str,
)
def test_a_product_has_its_shape(module: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "_SMALL", 0)
    real, known = (run(module, torch.rand(shape), shapes_only=only) for only in (False, True))
    assert real.any()
    assert not known.any()
    assert (known.shape, known.dtype) == (real.shape, real.dtype)


FOLLOWERS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("relu", torch.relu),
    ("relu_", lambda x: F.relu(x, inplace=True)),
    ("silu_", lambda x: F.silu(x, inplace=True)),
    ("hardswish", F.hardswish),
    ("clamp", lambda x: x.clamp(0, 1)),
    ("softmax", lambda x: x.softmax(1)),
    ("dropout", lambda x: F.dropout(x, 0.5, training=True)),
    ("add", lambda x: x + x[:, :1]),
    ("add_", lambda x: x.add_(1.0)),
    ("sub", lambda x: 1 - x),
    ("mul", lambda x: x * torch.rand(8, 1, 1)),
    ("div", lambda x: x / 2),
    ("cat", lambda x: torch.cat([x, torch.rand(2, 3, 9, 11), x], 1)),
    ("cat last", lambda x: torch.cat([x, x], -1)),
    ("pool", lambda x: F.max_pool2d(x, 3, 2, 1)),
    ("pool up", lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True)),
    ("pool flat", lambda x: F.max_pool2d(x, (3, 5), 1, (1, 2))),
    ("mean", lambda x: x.mean((2, 3))),
    ("mean kept", lambda x: x.mean([-1], True)),
    ("batch_norm", nn.BatchNorm2d(8)),
    ("group_norm", nn.GroupNorm(4, 8)),
    ("layer_norm", nn.LayerNorm(11)),
    ("contiguous", lambda x: x.permute(0, 2, 3, 1).contiguous()),
    ("clone", torch.clone),
]  # fmt: skip
COMPUTED: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("mean of all", lambda x: x.mean()),
    ("softmax as double", lambda x: x.softmax(1, dtype=torch.float64)),
    ("clamp by a tensor", lambda x: x.clamp(torch.zeros(3, 2, 8, 9, 11))),
    ("interpolate", lambda x: F.interpolate(x, scale_factor=2.0)),
    ("average", lambda x: F.adaptive_avg_pool2d(x, 3)),
    ("add doubles", lambda x: x + torch.zeros(11, dtype=torch.float64)),
    ("add an outline in place", lambda x: torch.zeros(2, 8, 9, 11).add_(x)),
    ("out=", lambda x: torch.add(x, x, out=torch.empty(2, 8, 9, 11))),
    ("view", lambda x: x.view(2, -1)),
    ("reshape", lambda x: x.permute(0, 2, 1, 3).reshape(2, -1)),
    ("flip", lambda x: x.flip(1)),
    ("unsqueeze_", lambda x: x.clone().unsqueeze_(0)),
    ("transpose_", lambda x: x.clone().transpose_(1, 2)),
    ("attention", lambda x: F.scaled_dot_product_attention(x, x, x).transpose(1, 2)),
    ("channels last", lambda x: F.relu(x.permute(0, 2, 3, 1))),
    ("channels last norm", lambda x: F.batch_norm(x.to(memory_format=torch.channels_last), None, None, training=True)),
    ("channels last product", lambda x: F.conv2d(x.permute(0, 3, 1, 2), torch.rand(5, 11, 1, 1))),
    ("joined out of order", lambda x: torch.cat([x.transpose(2, 3), x.transpose(2, 3)])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fn"), [*FOLLOWERS, *COMPUTED])
def test_what_follows_a_product_has_its_shape(
    name: str, fn: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlines, "_SMALL", 0)
    layer = nn.Conv2d(8, 8, 1)
    real, known = (run(Applied(lambda x: fn(layer(x))), MAP, shapes_only=only) for only in (False, True))
    assert (known.shape, known.dtype, known.stride()) == (real.shape, real.dtype, real.stride())
    assert (name, fn) in COMPUTED or not known.any()


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(7, 4, 3),
        nn.Conv2d(8, 4, 30),
        nn.Linear(12, 3),
        nn.Conv2d(8, 4, 1).double(),
        nn.BatchNorm2d(7),
        nn.GroupNorm(3, 9),
        nn.LayerNorm(12),
        Applied(lambda x: x + torch.zeros(7, 1, 1)),
        Applied(lambda x: torch.cat([x, torch.zeros(2, 8, 9, 12)], 1)),
    ],
    ids=str,
)
def test_what_an_op_refuses_it_refuses_without_values_too(module: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 1), module)
    errors = [replay(network, Example((MAP,)), lambda *_: None, shapes_only=only).error for only in (False, True)]
    assert errors[0] is not None
    assert str(errors[0]) == str(errors[1])


@pytest.mark.parametrize(
    "spec",
    ["torchvision:resnet18", "torchvision:vit_b_32", "torchvision:deeplabv3_mobilenet_v3_large", "effp:auxiliary"],
)
@pytest.mark.parametrize("train", [False, True])
def test_the_graph_is_the_same_without_values(spec: str, train: bool) -> None:
    built = build(spec)
    model = prepared(built.model)
    computed, known = (
        capture(model, built.example(), train=train, values=values)
        for values in (Values.ALL, Values.NONE if train else Values.UNTIL_READ)
    )
    assert known.values is not Values.ALL
    assert graph.to_text(known.graph_module) == graph.to_text(computed.graph_module)
    assert known.reads == computed.reads


def _boxes(y: Tensor) -> Tensor:
    boxes = y.flatten()[:8].reshape(2, 4).cumsum(1)
    return torchvision.ops.nms(boxes, boxes[:, 0], 0.5)


def _written(y: Tensor) -> Tensor:
    room = torch.zeros(3)
    room[:1] = y.flatten()[:1]
    return y * room.sum().item()


READERS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda y: y * y.flatten()[0].item(),
    "branch": lambda y: y if y.sum() > 0 else -y,
    "numpy": lambda y: y * float(y.numpy().max()),
    "tolist": lambda y: y * y.flatten()[:2].tolist()[1],
    "print": lambda y: y * float(f"{y.flatten()[0]:.3f}"),
    "mask": lambda y: y[y > 0],
    "where": lambda y: torch.where(y > 0)[0],
    "nonzero": lambda y: y.nonzero(),
    "unique": lambda y: y.argmax(1).unique(),
    "one hot": lambda y: F.one_hot(y.argmax(1)),
    "repeats": lambda y: y[0, 0].repeat_interleave(y[0, 0, :, 0].long().clamp(0, 3), 0),
    "suppression": _boxes,
    "written elsewhere": _written,
}


@pytest.mark.parametrize("name", READERS)
def test_a_model_that_reads_a_value_is_given_it(name: str) -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: READERS[name](m.layer(x)), layer=nn.Conv2d(3, 8, 3))
    example = Example((torch.rand(1, 3, 40, 40),))
    computed, known = (capture(model, example, values=values) for values in (Values.ALL, Values.UNTIL_READ))
    assert known.values is Values.ALL
    assert graph.to_text(known.graph_module) == graph.to_text(computed.graph_module)


def test_what_is_no_value_of_the_run_may_be_read() -> None:
    def scaled(m: Net, x: Tensor) -> Tensor:
        y: Tensor = m.layer(x)
        places = torch.arange(y.shape[-1]).float()
        return y[:, [2, 0]] * m.factor.item() + places / int(places.max())

    model = Net(scaled, layer=nn.Conv2d(3, 8, 3), factor=torch.tensor(3.0))
    known = capture(model, Example((torch.rand(1, 3, 40, 40),)), values=Values.UNTIL_READ)
    assert known.values is Values.UNTIL_READ
    assert len(known.reads) == 2


def test_a_model_that_hides_the_end_of_a_run_is_run_with_values() -> None:
    def guarded(m: Net, x: Tensor) -> Tensor:
        y: Tensor = m.layer(x)
        try:
            return y * y.sum().item()
        except Exception:  # a model that lets nothing through, the end of its own run included
            return y

    model = Net(guarded, layer=nn.Conv2d(3, 8, 3))
    known = capture(model, Example((torch.rand(1, 3, 40, 40),)), values=Values.UNTIL_READ)
    assert known.values is Values.ALL


def test_a_head_that_only_values_lead_to_is_captured_in_training() -> None:
    """Without values nothing is above the threshold, and the layer behind it would not run."""

    def gated(m: Net, x: Tensor) -> Tensor:
        y: Tensor = m.last(m.first(x))
        if m.training and bool((y > 0).any()):
            y = y + m.extra(m.first(x))
        return y

    model = Net(gated, first=nn.Conv2d(3, 16, 3), last=nn.Conv2d(16, 4, 3), extra=nn.Conv2d(16, 4, 3))
    found = tracing.trace(prepared(model), Example((torch.rand(1, 3, 40, 40),)))
    assert "extra.weight" in found.analysis.graphs[1].capture.used
    assert found.analysis.graphs[1].capture.values is Values.ALL
