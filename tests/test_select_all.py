"""Boxes and scores of every anchor out of post-processing that decodes only what it has selected."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms

from effp_fx import decoded_part, graph, models
from effp_fx.capture import capture, private_copy
from effp_fx.errors import ExportError
from effp_fx.export import selection
from effp_fx.export.parts import record
from effp_fx.inputs import Example, as_example
from effp_fx.models import Detection, Field
from effp_fx.models.randomise import randomise

CLASSES = 3
PER_IMAGE = Detection(Field("boxes"), Field("scores"), Field("labels"))
COLUMNS = Detection(Field(0, (0, 4)), Field(0, (4, 5)), Field(0, (5, 6)))


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Centre and size from the anchors, as corners."""
    centre = anchors[:, :2] + deltas[:, 0:2] * anchors[:, 2:]
    size = anchors[:, 2:] * deltas[:, 2:4].exp()
    return torch.stack([centre - size / 2, centre + size / 2], 1).reshape(deltas.shape)


class Detector(nn.Module):
    """Two levels of raw heads, then the post-processing that a test gives: deltas, logits and anchors by level."""

    def __init__(self, after: Callable[[list[Tensor], list[Tensor], list[Tensor]], object]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, CLASSES, 1)
        self.after = after

    def heads(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        x = self.stem(images)
        maps = [x, x[:, :, ::2, ::2]]
        deltas = [self.boxes(part).flatten(2).transpose(1, 2) * 0.3 for part in maps]
        logits = [self.scores(part).flatten(2).transpose(1, 2) for part in maps]
        anchors = [torch.linspace(1, 7, 4 * part.shape[1]).reshape(-1, 4) for part in deltas]
        return deltas, logits, anchors

    def forward(self, images: Tensor) -> object:
        return self.after(*self.heads(images))


def class_by_class(deltas: list[Tensor], logits: list[Tensor], anchors: list[Tensor]) -> object:
    """As SSD: decode all, then threshold and top-k in each class, background left out."""
    boxes, scores = decode(torch.cat(deltas, 1)[0], torch.cat(anchors)), torch.cat(logits, 1)[0].softmax(-1)
    found = []
    for label in range(1, CLASSES):
        score = scores[:, label]
        keep = score > 0.1
        score, order = score[keep].topk(4)
        found.append((boxes[keep][order], score, torch.full_like(score, label, dtype=torch.int64)))
    whole, score, labels = (torch.cat(part) for part in zip(*found, strict=True))
    keep = batched_nms(whole, score, labels, 0.5)[:5]
    return [{"boxes": whole[keep], "scores": score[keep], "labels": labels[keep]}]


def level_by_level(deltas: list[Tensor], logits: list[Tensor], anchors: list[Tensor]) -> object:
    """As RetinaNet: threshold and top-k over anchors and classes of a level, decode what is left."""
    found = []
    for delta, logit, anchor in zip(deltas, logits, anchors, strict=True):
        flat = logit[0].sigmoid().flatten()
        keep = flat > 0.2
        places = torch.where(keep)[0]
        score, order = flat[keep].topk(min(6, len(places)))
        places = places[order]
        rows = torch.div(places, CLASSES, rounding_mode="floor")
        found.append((decode(delta[0][rows], anchor[rows]), score, places % CLASSES))
    boxes, score, labels = (torch.cat(part) for part in zip(*found, strict=True))
    keep = nms(boxes, score, 0.5)
    return [{"boxes": boxes[keep] / 2, "scores": score[keep], "labels": labels[keep]}]


def batch_at_once(deltas: list[Tensor], logits: list[Tensor], anchors: list[Tensor]) -> object:
    """As end-to-end YOLO: the best anchors, then the best of their classes, gathered for a whole batch."""
    boxes = torch.stack([decode(each, torch.cat(anchors)) for each in torch.cat(deltas, 1)])
    scores = torch.cat(logits, 1).sigmoid()
    best = scores.amax(-1).topk(7, dim=1)[1]
    chosen = scores.gather(1, best[..., None].expand(-1, -1, CLASSES))
    values, index = chosen.flatten(1).topk(5, dim=1)
    rows = best.gather(1, index // CLASSES)
    kept = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
    return torch.cat([kept, values[..., None], (index % CLASSES)[..., None].float()], -1)


IMAGES = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def find(after: Callable[..., object], detection: Detection, images: Tensor = IMAGES) -> decoded_part.DecodedPart:
    torch.manual_seed(0)
    example = as_example(images)
    return decoded_part.find(capture(Detector(after), example), example, detection)


@pytest.mark.parametrize(
    ("after", "detection", "labels", "halved"),
    [
        (class_by_class, PER_IMAGE, (1, 2), 1),
        (level_by_level, PER_IMAGE, (0, 1, 2), 2),
        (batch_at_once, COLUMNS, (0, 1, 2), 1),
    ],
)
def test_every_anchor_is_decoded_as_the_model_would(
    after: Callable[..., object], detection: Detection, labels: tuple[int, ...], halved: int
) -> None:
    found = find(after, detection)
    torch.manual_seed(0)
    model = Detector(after)
    assert found.classes == labels
    assert sum(found.levels) == 20
    for seed in range(3):
        images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            boxes, scores = found.part.graph_module(images)
            deltas, logits, anchors = model.heads(images)
        wanted = decode(torch.cat(deltas, 1)[0], torch.cat(anchors)) / halved
        whole = torch.cat(logits, 1)[0]
        activated = whole.softmax(-1)[:, 1:] if after is class_by_class else whole.sigmoid()
        torch.testing.assert_close(boxes, wanted[None])
        torch.testing.assert_close(scores, activated[None])


def test_a_batch_is_gathered_for_each_of_its_images() -> None:
    images = torch.rand(3, 3, 8, 8)
    boxes, scores = find(batch_at_once, COLUMNS, images).part.graph_module(images)
    assert boxes.shape == (3, 20, 4) and scores.shape == (3, 20, CLASSES)
    single = find(batch_at_once, COLUMNS).part.graph_module(images[2:])
    torch.testing.assert_close(boxes[2:], single[0])
    torch.testing.assert_close(scores[2:], single[1])


def test_a_box_that_stands_for_many_classes_is_decoded_once() -> None:
    nodes = find(level_by_level, PER_IMAGE).part.graph_module.graph.nodes
    sizes = {graph.info(node).shape[0] for node in nodes if graph.op_name(node) == "aten.exp"}
    assert sizes == {16, 4}


def with_scores(change: Callable[[Tensor], Tensor]) -> Callable[..., object]:
    def after(deltas: list[Tensor], logits: list[Tensor], anchors: list[Tensor]) -> object:
        flat = torch.cat(logits, 1)[0].sigmoid().flatten()
        places = torch.where(flat > 0.2)[0]
        score = change(flat[places])
        boxes = decode(torch.cat(deltas, 1)[0][places // CLASSES], torch.cat(anchors)[places // CLASSES])
        return [{"boxes": boxes, "scores": score, "labels": places % CLASSES}]

    return after


@pytest.mark.parametrize("change", [lambda s: s / s.max(), lambda s: s.cumsum(0), lambda s: s.softmax(0)])
def test_what_mixes_selected_rows_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ExportError, match="every anchor cannot be computed") as caught:
        find(with_scores(change), PER_IMAGE)
    assert "test_select_all.py" in str(caught.value)
    assert 'part="network"' in str(caught.value)


def test_labels_that_are_chosen_by_value_are_refused() -> None:
    def after(deltas: list[Tensor], logits: list[Tensor], anchors: list[Tensor]) -> object:
        score, label = torch.cat(logits, 1)[0].sigmoid().max(1)
        keep = score > 0.2
        boxes = decode(torch.cat(deltas, 1)[0], torch.cat(anchors))
        return [{"boxes": boxes[keep], "scores": score[keep], "labels": label[keep]}]

    with pytest.raises(ExportError, match="chosen by value"):
        find(after, PER_IMAGE)


def test_an_output_without_the_named_tensor_is_refused() -> None:
    with pytest.raises(ExportError, match="not what its family says") as caught:
        find(class_by_class, Detection(Field("pred_boxes"), Field("scores"), Field("labels")))
    assert "pred_boxes" in str(caught.value)


def test_a_second_stage_is_named() -> None:
    built = models.build("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn?min_size=64&max_size=64")
    assert built.adapter is not None
    detection = built.adapter.detection(built.model)
    with pytest.raises(ExportError, match="two stages") as caught:
        record(built.model, built.example(), detection, False, lambda _: None)
    assert "roi_heads" in str(caught.value)


@pytest.mark.parametrize("name", ["ssd_small", "yolo_small"])
def test_the_detections_of_a_model_stand_among_its_anchors(name: str) -> None:
    built = models.build(f"effp:{name}")
    example = built.example()
    randomise(built.model, example=example)
    assert built.adapter is not None
    detection = built.adapter.detection(built.model)
    assert detection is not None
    made = record(built.model, Example((example.args[0] * 2,)), detection, False, lambda _: None)
    assert made.decoding is not None
    assert made.part.inputs == ("images",)
    image = torch.rand(example.args[0][0].shape)
    with torch.no_grad():
        boxes, scores = made.part.graph_module(torch.stack([image, image.flip(-1)]))
        own = selection.own(private_copy(built.model)([image, image.flip(-1)]), detection)
    assert isinstance(own, list)
    count, apart = selection.rows_apart((boxes, scores), own, made.decoding)
    assert count > 20
    assert apart < 1e-5
