"""Capture: the model stays exactly as it was, and the graph computes what the model computes."""

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from effp_fx import graph
from effp_fx.capture import Capture, capture, named_tensors, tensors_of
from effp_fx.errors import CaptureError
from effp_fx.inputs import Example, as_example
from tests.exactness import Net, prepared, weight
from tests.test_ops_shared import tied_embedding, tied_layers
from tests.test_ops_weights import hooked

c2, bn = nn.Conv2d, nn.BatchNorm2d


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def replayed(captured: Capture, example: Example) -> list[Tensor]:
    """What the graph computes on the inputs; the module is copied first, for in-place ops write into its buffers."""
    leaves = [
        leaf for leaf in torch.utils._pytree.tree_leaves((example.args, example.kwargs)) if isinstance(leaf, Tensor)
    ]
    with torch.no_grad():
        return list(copy.deepcopy(captured.graph_module)(*(leaf.clone() for leaf in leaves)))


def assert_same_values(model: nn.Module, inputs: Any) -> Capture:
    example = as_example(inputs)
    captured = capture(model, example)
    with torch.no_grad():
        expected, _ = tensors_of(copy.deepcopy(model)(*copy.deepcopy(example).args, **copy.deepcopy(example).kwargs))
    found = replayed(captured, example)
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)
    return captured


# -- the model is left as it was -------------------------------------------------------------------------------------


class Busy(nn.Module):
    """Has everything that a capture could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop, self.head = c2(3, 8, 3), bn(8), nn.Dropout(0.5), nn.Linear(8, 4)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("scratch", torch.zeros(4), persistent=False)
        self.calls: list[int] = []
        self.seen: dict[str, Any] = {}
        self.cache: Tensor | None = None
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        self.seen["last"] = tuple(x.shape)
        self.steps += 1
        self.cache = torch.randn(3) + random.random() + float(np.random.rand())
        x.mul_(1.5)
        y: Tensor = self.head(self.drop(F.relu(self.norm(self.conv(x)))).mean((2, 3)))
        self.scratch.copy_(y[0].detach())
        return y


def everything(model: nn.Module) -> dict[str, Any]:
    """All that is to be the same afterwards."""
    return {
        "identity": {name: id(tensor) for name, tensor in named_tensors(model).items()},
        "version": {name: tensor._version for name, tensor in named_tensors(model).items()},
        "values": {name: tensor.detach().clone().tolist() for name, tensor in named_tensors(model).items()},
        "grad": {
            name: None if tensor.grad is None else tensor.grad.tolist() for name, tensor in named_tensors(model).items()
        },
        "requires": {name: tensor.requires_grad for name, tensor in named_tensors(model).items()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [len(value) for key, value in vars(module).items() if key.endswith("_hooks")]
            for name, module in model.named_modules()
        },
        "attributes": {
            name: {key: repr(value) for key, value in vars(module).items() if not key.startswith("_")}
            for name, module in model.named_modules()
        },
        "class": [type(module) for module in model.modules()],
        "random": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "switches": (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()),
        "filters": list(warnings.filters),
        "global hooks": len(nn.modules.module._global_forward_hooks) + len(nn.modules.module._global_forward_pre_hooks),
    }


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("mode", [False, True])
def test_the_model_is_left_exactly_as_it_was(train: bool, mode: bool) -> None:
    model, inputs = Busy(), image()
    model.norm.register_forward_hook(lambda *_: None)
    model(inputs.clone()).sum().backward()
    model.train(mode)
    model.drop.train(not mode)
    before, given = everything(model), inputs.clone()
    capture(model, as_example(inputs), train=train)
    after = everything(model)
    for key in before:
        assert before[key] == after[key], key
    assert torch.equal(given, inputs)


def test_it_is_left_as_it_was_when_forward_fails() -> None:
    model, inputs = Busy().eval(), torch.randn(2, 5, 8, 8)
    before = everything(model)
    with pytest.raises(CaptureError, match="Busy failed on the example inputs"):
        capture(model, as_example(inputs))
    after = everything(model)
    assert all(before[key] == after[key] for key in before)


# -- the graph computes what the model computes ----------------------------------------------------------------------


def in_place(m: Any, x: Tensor) -> Tensor:
    """Views of views, written to from both ends."""
    y = m.first(x)
    view = y.view(2, 2, 4, 64)[:, 1].transpose(1, 2)
    view.mul_(2).add_(1)
    y[:, 0] += y[:, 7]
    F.relu_(y[:, 2:6])
    out: Tensor = m.last(y)
    return out


def over_buffer(m: Any, x: Tensor) -> Tensor:
    m.memory.mul_(0.5)
    m.memory += m.first(x).mean((0, 2, 3))
    out: Tensor = m.last(m.first(x) * m.memory[:, None, None])
    return out


def put_together(m: Any, x: Tensor) -> Any:
    y = m.first(x)
    both = torch.zeros(2, 16, 8, 8)
    both[:, :8], both[:, 8:] = y, y.sigmoid()
    lengths = torch.tensor([1.0, 2.0])
    lengths[0] = 5
    return {
        "both": both,
        "parts": [part for part in both.split(4, 1)],
        "scaled": m.last(y) * lengths[:, None, None, None],
        "n": 3,
    }


def by_value(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    out: Tensor = m.last(y if y.mean().item() > 0 else -y)
    return out


GRAPHS: dict[str, Callable[[Any, Tensor], Any]] = {
    "writes to views of views": in_place,
    "writes to a buffer": over_buffer,
    "puts parts together": put_together,
    "branches on a value": by_value,
    "returns its input": lambda m, x: (x, m.last(m.first(x))),
    "returns one tensor twice": lambda m, x: [(y := m.last(m.first(x))), y],
    "returns a parameter": lambda m, x: (m.first.weight, m.last(m.first(x))),
    "unpacks many results": lambda m, x: m.last(torch.stack(m.first(x).unbind(1)[::-1], 1)),
    "takes the largest": lambda m, x: F.max_pool2d(m.last(m.first(x)), 2, return_indices=True),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graph_computes_what_the_model_computes(name: str) -> None:
    model = prepared(Net(GRAPHS[name], first=c2(3, 8, 1), last=c2(8, 4, 1), memory=torch.rand(8)))
    assert_same_values(model, image())


def test_inputs_come_in_the_order_of_the_tree() -> None:
    model = KeywordNet()
    captured = assert_same_values(model, Example((image(), [image(), image()]), {"scale": {"s": torch.rand(1)}}))
    assert [node.name for node in captured.graph_module.graph.nodes if node.op == "placeholder"] == [
        f"input_{i}" for i in range(4)
    ]


class KeywordNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = c2(3, 3, 1)

    def forward(self, a: Tensor, pair: list[Tensor], *, scale: dict[str, Tensor]) -> Tensor:
        result: Tensor = self.first(a) * scale["s"] + pair[0] - pair[1]
        return result


def test_hooks_run() -> None:
    assert_same_values(hooked(), image())


@pytest.mark.parametrize(("build", "names"), [(tied_layers, {"1.weight"}), (tied_embedding, {"table.weight"})])
def test_a_tied_weight_is_read_under_one_name(build: Callable[[], nn.Module], names: set[str]) -> None:
    model = build().eval()
    captured = assert_same_values(model, image() if names == {"1.weight"} else torch.randint(0, 10, (2, 5)))
    reads = [name for _, name in graph.weights(captured.graph_module)]
    assert len(reads) == len(set(reads))
    assert names <= set(reads)
    assert set(reads) <= set(named_tensors(model))


def test_a_layer_that_runs_twice_is_one_read() -> None:
    model = Net(lambda m, x: m.a(m.a(x)), a=c2(3, 3, 1)).eval()
    reads = [name for _, name in graph.weights(assert_same_values(model, image()).graph_module)]
    assert sorted(reads) == ["a.bias", "a.weight"]


def test_every_op_knows_its_module_and_its_line() -> None:
    model = nn.Sequential(nn.Sequential(c2(3, 8, 1), bn(8)), Net(lambda m, x: m.c(x) + 1, c=c2(8, 4, 1))).eval()
    nodes = {graph.op_name(node): node for node in capture(model, as_example(image())).graph_module.graph.nodes}
    assert nodes["aten.batch_norm"].meta["module"] == "0.1"
    assert nodes["aten.batch_norm"].meta["module_type"] == "BatchNorm2d"
    assert nodes["aten.add"].meta["module"] == "1"
    assert nodes["aten.add"].meta["source"].startswith("test_capture.py:")


def test_what_was_read_and_what_was_not() -> None:
    model = Net(lambda m, x: m.a(x), a=c2(3, 4, 1), idle=c2(3, 4, 1), unused=weight(3)).eval()
    captured = capture(model, as_example(image()))
    assert captured.used == {"a.weight", "a.bias"}
    assert not captured.reads


def test_values_that_python_reads_are_noted() -> None:
    model = Net(by_value, first=c2(3, 8, 1), last=c2(8, 4, 1)).eval()
    (read,) = capture(model, as_example(image())).reads
    assert "item" in read or "_local_scalar_dense" in read
    assert "test_capture.py" in read


# -- train mode ------------------------------------------------------------------------------------------------------


class Auxiliary(nn.Module):
    """A head that exists in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last, self.extra = c2(3, 8, 1), bn(8), c2(8, 4, 1), c2(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.first(x))
        return (self.last(y), self.extra(y)) if self.training else self.last(y)


def test_train_mode_is_captured_too() -> None:
    model = Auxiliary()
    dense, trained = (capture(model, as_example(image()), train=train) for train in (False, True))
    assert trained.train and not dense.train
    assert "extra.weight" in trained.used and "extra.weight" not in dense.used
    (norm,) = (node for node in trained.graph_module.graph.nodes if graph.op_name(node) == "aten.batch_norm")
    assert norm.args[5] is True


def test_one_image_is_doubled_where_a_norm_needs_two() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    captured = capture(model, as_example(torch.randn(1, 3, 8, 8)), train=True)
    placeholder = next(iter(captured.graph_module.graph.nodes))
    assert isinstance(placeholder, fx.Node)
    assert graph.info(placeholder).shape == (2, 3, 8, 8)
