"""The dense part of a captured network: where it ends, what it is called, and that it computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from effp_fx import dense_part, graph, models, value_names
from effp_fx.capture import capture
from effp_fx.functional import functional
from effp_fx.inputs import Example, as_example
from effp_fx.models.randomise import randomise


class Net(nn.Module):
    """Two convolutions, then whatever a test does with what they compute."""

    def __init__(self, after: Callable[["Net", Tensor], object]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 6, 1)
        self.after = after

    def forward(self, x: Tensor) -> object:
        return self.after(self, self.stem(x))


IMAGES = as_example(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def find(model: nn.Module, example: Example = IMAGES) -> dense_part.DensePart:
    return dense_part.find(capture(model, example), example)


def sizes(found: dense_part.DensePart) -> dict[str, list[int]]:
    nodes = found.graph_module.graph.output_node().args[0]
    return {name: list(graph.info(node).shape) for name, node in zip(found.outputs, nodes, strict=True)}


def test_without_post_processing_the_outputs_are_the_models_own() -> None:
    found = find(Net(lambda net, x: {"logits": net.head(x).softmax(1), "features": x.relu()}))
    assert found.own_outputs
    assert sizes(found) == {"logits": [2, 6, 8, 8], "features": [2, 8, 8, 8]}
    assert found.inputs == ("images",)


@pytest.mark.parametrize(
    "choose",
    [
        lambda scores: scores.flatten(1).topk(5).values,
        lambda scores: scores.flatten(1).sort(1)[0],
        lambda scores: scores.argmax(1),
        lambda scores: scores[scores > 0.5],
        lambda scores: torch.where(scores > 0.5)[0],
        lambda scores: scores.masked_select(scores > 0),
        lambda scores: scores.max(1).indices,
        lambda scores: scores.flatten().nonzero(),
        lambda scores: scores.flatten().unique(),
    ],
)
def test_a_choice_after_the_last_layer_ends_the_dense_part(choose: Callable[[Tensor], Tensor]) -> None:
    found = find(Net(lambda net, x: choose(net.head(x).sigmoid())))
    assert not found.own_outputs
    assert sizes(found) == {"head": [2, 6, 8, 8]}


def test_the_largest_value_is_no_choice_of_one() -> None:
    assert find(Net(lambda net, x: net.head(x).max(1).values)).own_outputs


def test_a_choice_that_a_layer_follows_belongs_to_the_network() -> None:
    def select(net: Net, x: Tensor) -> Tensor:
        best = x.mean((2, 3)).topk(1, dim=0).indices
        return net.head(x.index_select(0, best[:, 0]))

    found = find(Net(select))
    assert found.own_outputs
    assert found.chosen == (True,)


def test_a_choice_without_a_fixed_shape_never_belongs_to_the_network() -> None:
    found = find(Net(lambda net, x: net.head(x[x.mean((1, 2, 3)) > -10])))
    assert not found.own_outputs
    assert sizes(found) == {"stem": [2, 8, 8, 8]}


def test_levels_are_joined_with_their_activation_and_what_follows_the_join_is_left_out() -> None:
    def levels(net: Net, x: Tensor) -> Tensor:
        heads = [net.head(part).relu().flatten(2).transpose(1, 2) for part in (x, x[..., ::2, ::2])]
        return torch.cat(heads, 1).softmax(-1).topk(3, 1).values

    assert sizes(find(Net(levels))) == {"head": [2, 80, 6]}
    source = find(Net(levels)).graph_module.graph.output_node().all_input_nodes[0]
    assert graph.op_name(source) == "aten.cat"


def test_one_image_after_another_is_not_part_of_the_head() -> None:
    def each(net: Net, x: Tensor) -> list[Tensor]:
        return [scores.flatten().topk(4).values for scores in net.head(x).unbind(0)]

    assert sizes(find(Net(each))) == {"head": [2, 6, 8, 8]}


def test_an_input_that_the_dense_part_does_not_read_is_dropped() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, size: Tensor, image: Tensor) -> Tensor:
            return self.conv(image).flatten(1).topk(2).values * size

    found = find(Two(), Example((torch.ones(2, 1), torch.rand(2, 3, 4, 4))))
    assert found.inputs == ("images",)
    assert found.taken == (1,)


def test_names_are_unique_and_safe() -> None:
    assert value_names.unique(["a", "a", "b c", "", "a_1"]) == ["a", "a_2", "b_c", "value", "a_1"]
    assert value_names.unique(["image", "image"], number_all=True) == ["image_0", "image_1"]
    images = Example(([torch.rand(3, 4, 4), torch.rand(3, 5, 5)],), {"mask": torch.ones(2)})
    assert value_names.of_inputs(images) == ["image_0", "image_1", "mask"]


WRITES = {
    "whole": lambda x: x.relu_().add_(1),
    "of a slice": lambda x: (x[:, 1:3].mul_(3), x)[1],
    "of a row": lambda x: (x[:, 2].fill_(5), x[0].zero_(), x)[2],
    "of every second": lambda x: (x[..., ::2].add_(1), x)[1],
    "of a part of a chunk": lambda x: (x.chunk(2, 1)[1].neg_(), x)[1],
    "through a transpose": lambda x: (x.transpose(1, 2)[:, :2].copy_(torch.ones(2, 2, 8, 8)), x)[1],
    "through a view that is read later": lambda x: (
        view := x.view(2, -1),
        x.sigmoid_(),
        view[:, 3:9].mul_(2),
        view.view_as(x),
    )[3],
    "of a corner": lambda x: (x[:, 1:3, 2:5, 4:].copy_(torch.tensor(7.0)), x)[1],
    "into a canvas": lambda x: (canvas := x.new_full((2, 8, 9, 9), 0.5), canvas[:, :, :8, 1:].copy_(x), canvas)[2],
    "at indices": lambda x: x.index_fill_(1, torch.tensor([0, 3]), 2.0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_writes_into_memory_become_values(write: Callable[[Tensor], Tensor]) -> None:
    model = Net(lambda net, x: net.head(write(x)))
    module = functional(capture(model, IMAGES).graph_module)
    assert not any(graph.is_mutation(node) for node in module.graph.nodes if node.op == "call_function")
    found = find(model)
    for seed in range(2):
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            wanted = model(images.clone())
            assert torch.equal(module(images)[0], wanted)
            assert torch.equal(found.graph_module(images)[0], wanted)


def test_the_captured_graph_is_left_alone() -> None:
    captured = capture(Net(lambda net, x: net.head(x.relu_())), IMAGES)
    before = graph.to_text(captured.graph_module)
    dense_part.find(captured, IMAGES)
    assert graph.to_text(captured.graph_module) == before


HEADS = {
    "torchvision:ssd300_vgg16": {
        "head.regression_head": [1, 8732, 4],
        "head.classification_head": [1, 8732, 91],
    },
    "torchvision:fcos_resnet50_fpn?min_size=320&max_size=320": {
        "head.classification_head": [1, 2134, 91],
        "head.regression_head.bbox_reg": [1, 2134, 4],
        "head.regression_head.bbox_ctrness": [1, 2134, 1],
    },
    "torchvision:retinanet_resnet50_fpn?min_size=128&max_size=128": {
        "head.classification_head": [1, 3069, 91],
        "head.regression_head": [1, 3069, 4],
    },
    "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn": {
        "backbone.fpn.layer_blocks.1.0": [1, 256, 10, 10],
        "backbone.fpn.layer_blocks.0.0": [1, 256, 10, 10],
        "rpn.head.bbox_pred": [3375, 4],
        "rpn.head.cls_logits": [1, 3375],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("spec", HEADS)
def test_the_raw_heads_of_detectors(spec: str) -> None:
    built = models.build(spec)
    randomise(built.model)
    found = find(built.model, built.example())
    assert found.inputs == ("image",)
    assert not found.own_outputs
    assert sizes(found) == HEADS[spec]
