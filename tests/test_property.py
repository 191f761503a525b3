"""Random networks: masked == compact, the target is met, the file comes back, the model stays as it was."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from effp_fx import binding, budget, cost, importance, store, tracing
from effp_fx.inputs import as_example
from effp_fx.plan import from_keep
from tests.exactness import EXACT, compared, distance, graph_distance, masks, outputs, prepared

Draw = Any
WIDTHS = st.sampled_from([4, 6, 8, 12])


class Norm(nn.Sequential):
    """One of the norms, and one of the activations."""

    def __init__(self, draw: Draw, width: int) -> None:
        norms = [
            nn.BatchNorm2d(width),
            nn.GroupNorm(2 - width % 2, width),
            nn.GroupNorm(1, width),
            nn.InstanceNorm2d(width, affine=True),
            nn.Identity(),
        ]
        acts = [nn.ReLU(), nn.SiLU(), nn.ReLU(inplace=True), nn.PReLU(width), nn.Sigmoid(), nn.Identity()]
        super().__init__(
            norms[draw(st.sampled_from([0, 0, 0, 1, 2, 3, 4]))], acts[draw(st.sampled_from([0, 1, 2, 3, 4, 5]))]
        )


def conv(draw: Draw, width: int, out: int, *, groups: int = 1) -> nn.Module:
    """A convolution of one of several kinds that keeps the size of the map, a norm and an activation."""
    size = draw(st.sampled_from([1, 3]))
    return nn.Sequential(
        nn.Conv2d(width, out, size, padding=size // 2, groups=groups, bias=draw(st.booleans())), *Norm(draw, out)
    )


class Block(nn.Module):
    """Takes a map of `width` channels to one of `out` channels; a subclass says how."""

    out: int


class Plain(Block):
    def __init__(self, draw: Draw, width: int, depth: int) -> None:
        super().__init__()
        self.out = draw(WIDTHS)
        self.conv = conv(draw, width, self.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class Residual(Block):
    def __init__(self, draw: Draw, width: int, depth: int) -> None:
        super().__init__()
        self.inner = block(draw, width, depth - 1)
        self.out = width
        self.back = conv(draw, self.inner.out, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.inner(x))  # type: ignore[no-any-return]


class Concat(Block):
    """Two branches and the input, in an order that is drawn."""

    def __init__(self, draw: Draw, width: int, depth: int) -> None:
        super().__init__()
        self.a, self.b = block(draw, width, depth - 1), block(draw, width, depth - 1)
        self.order = draw(st.permutations([0, 1, 2]))[: draw(st.integers(2, 3))]
        self.out = sum([self.a.out, self.b.out, width][index] for index in self.order)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.a(x), self.b(x), x]
        return torch.cat([parts[index] for index in self.order], 1)


class Split(Block):
    """Halves by chunk, or parts by sizes that are computed; one goes through a layer, and both change places."""

    def __init__(self, draw: Draw, width: int, depth: int) -> None:
        super().__init__()
        self.by_chunk, self.out = draw(st.booleans()), width
        self.layer = conv(draw, width // 2, width // 2)

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, 1) if self.by_chunk else x.split(x.shape[1] // 2, 1)
        return torch.cat([self.layer(two), one], 1)


class Shuffle(Block):
    def __init__(self, draw: Draw, width: int, depth: int) -> None:
        super().__init__()
        self.out = width
        self.layer = conv(draw, width, width, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = self.layer(x).shape
        return self.layer(x).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)  # type: ignore[no-any-return]


class Depthwise(Block):
    def __init__(self, draw: Draw, width: int, depth: int) -> None:
        super().__init__()
        self.out = width * draw(st.sampled_from([1, 2]))
        self.layer = conv(draw, width, self.out, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class Gate(Block):
    """Squeeze and excitation."""

    def __init__(self, draw: Draw, width: int, depth: int) -> None:
        super().__init__()
        self.out = width
        self.down, self.up = nn.Linear(width, 3), nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]  # type: ignore[no-any-return]


class Shared(Block):
    """One layer twice."""

    def __init__(self, draw: Draw, width: int, depth: int) -> None:
        super().__init__()
        self.out, self.layer = width, conv(draw, width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x) + x)  # type: ignore[no-any-return]


class Folded(Block):
    """Space to depth, then a layer; back by interpolation."""

    def __init__(self, draw: Draw, width: int, depth: int) -> None:
        super().__init__()
        self.out = draw(WIDTHS)
        self.layer = conv(draw, 4 * width, self.out)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        return nn.functional.interpolate(self.layer(x), scale_factor=2.0)


LEAVES = [Plain, Split, Shuffle, Depthwise, Gate, Shared, Folded]


def block(draw: Draw, width: int, depth: int) -> Block:
    kinds = LEAVES if depth <= 0 else [*LEAVES, Residual, Residual, Concat, Concat]
    if width % 2:
        kinds = [kind for kind in kinds if kind not in (Split, Shuffle)]
    made: Block = draw(st.sampled_from(kinds))(draw, width, depth)
    return made


class Network(nn.Module):
    """A stem, some blocks, and a head: a convolution, or flattened places and a linear layer."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.stem = Plain(draw, 3, 0)
        blocks, width = [], self.stem.out
        for _ in range(draw(st.integers(1, 3))):
            blocks.append(block(draw, width, 2))
            width = blocks[-1].out
        self.blocks = nn.Sequential(*blocks)
        self.flat = draw(st.booleans())
        self.head = nn.Linear(width * 16, 5) if self.flat else nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.blocks(self.stem(x))
        return self.head(y.flatten(1)) if self.flat else {"map": self.head(y)}


@st.composite
def networks(draw: Draw) -> nn.Module:
    """A random network in eval mode, everything in it random."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    return prepared(Network(draw))


def example() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@settings(max_examples=60, deadline=None)
@given(networks())
def test_masked_is_compact_and_the_model_is_left_alone(model: nn.Module) -> None:
    before, dense = copy.deepcopy(model), as_example(example())
    traced = tracing.trace(model, dense)
    _same(before, model)
    event(f"channels: {traced.analysis.channels > 0}")
    assume(traced.analysis.channels)
    seen = [compared(traced, model, dense, keep) for keep in masks(traced.analysis)]
    assert graph_distance(traced, dense, next(masks(traced.analysis))) < EXACT
    assert max(error for error, _ in seen) < EXACT
    _same(before, model)
    assume(max(change for _, change in seen) > 1e-6)  # all behind dead units: it proves nothing, so it does not count


@settings(max_examples=25, deadline=None)
@given(networks(), st.floats(0.4, 0.95))
def test_a_target_is_met_and_the_file_comes_back(
    tmp_path_factory: pytest.TempPathFactory, model: nn.Module, share: float
) -> None:
    traced = tracing.trace(model, as_example(example()))
    analysis = traced.analysis
    assume(analysis.channels)
    flops = cost.flops(analysis)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    smallest = flops(np.isin(np.arange(analysis.channels), [group.start for group in analysis.groups]))
    target = smallest + share * (flops.dense - smallest)
    keep = budget.search(analysis, importance.gamma(analysis, tensors), {"flops": flops}, {"flops": target})
    assert flops(keep) <= target * (1 + 1e-12)
    small = binding.apply(model, from_keep(analysis, keep, traced.attributes(keep), summary={}))
    path: Path = tmp_path_factory.mktemp("compact") / "model.safetensors"
    store.save(small, path)
    again = store.load(path, dense_model=model)
    expected = outputs(copy.deepcopy(small).double(), as_example(example()))
    assert distance(outputs(copy.deepcopy(again).double(), as_example(example())), expected) == 0.0


def _same(before: nn.Module, after: nn.Module) -> None:
    one, two = before.state_dict(), after.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [module.training for module in before.modules()] == [module.training for module in after.modules()]
