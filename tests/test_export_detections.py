"""Detections written into a file: the same as PyTorch chooses, for every kind of candidates; or TensorRT's plugin."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from effp_fx import models
from effp_fx.errors import ExportError
from effp_fx.export import Decoding, detections, export_onnx, selection
from effp_fx.export.selection import Detections
from effp_fx.export.tensorrt import check_tensorrt
from effp_fx.models import Detection, Field
from effp_fx.models.randomise import randomise

PLAIN = Decoding(
    box_format="xyxy",
    normalised=False,
    classes=(0, 1, 2, 3),
    score_threshold=0.3,
    iou_threshold=0.5,
    max_detections=20,
    best_class_only=False,
    candidates=None,
    candidates_per="image",
    levels=(40, 20),
)
KINDS = {
    "plain": PLAIN,
    "labels of its own": replace(PLAIN, classes=(1, 2, 5, 9)),
    "best class only": replace(PLAIN, best_class_only=True),
    "by class": replace(PLAIN, candidates=2, candidates_per="class"),
    "by level": replace(PLAIN, candidates=5, candidates_per="level"),
    "by image": replace(PLAIN, candidates=10, candidates_per="image"),
    "by anchor, no suppression": replace(PLAIN, candidates=3, candidates_per="anchor", iou_threshold=None),
    "centre and size": replace(PLAIN, box_format="cxcywh"),
    "the best, no suppression": replace(PLAIN, iou_threshold=None, box_format="cxcywh"),
    "more than there is": replace(PLAIN, max_detections=500, iou_threshold=None),
    "nothing found": replace(PLAIN, score_threshold=2.0),
}


def plain_file(batch: int, opset: int) -> onnx.ModelProto:
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 60, size])
        for name, size in (("b", 4), ("s", 4), ("boxes", 4), ("scores", 4))
    ]
    nodes = [helper.make_node("Identity", ["b"], ["boxes"]), helper.make_node("Identity", ["s"], ["scores"])]
    made = helper.make_graph(nodes, "plain", ports[:2], ports[2:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def values(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(batch, 60, 2, generator=generator) * 60 + 20
    return torch.cat([low, low + torch.rand(low.shape, generator=generator) * 60 + 5], -1), torch.rand(
        batch, 60, 4, generator=generator
    )


def run(model: onnx.ModelProto, boxes: Tensor, scores: Tensor) -> list[Detections]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"b": boxes.numpy(), "s": scores.numpy()})
    count, kept, best, labels = (torch.from_numpy(item) for item in found)
    assert count.dtype == labels.dtype == torch.int32
    return [
        Detections(kept[at, :number], best[at, :number], labels[at, :number].long())
        for at, number in enumerate(count.flatten().tolist())
    ]


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_chooses_what_pytorch_chooses(kind: str, opset: int) -> None:
    decoding, (boxes, scores) = KINDS[kind], values(2)
    model = detections.add(plain_file(2, opset), decoding, "onnxruntime", opset)
    onnx.checker.check_model(model, full_check=True)
    found, wanted = run(model, boxes, scores), selection.select(boxes, scores, decoding)
    assert [len(image.scores) for image in found] == [len(image.scores) for image in wanted]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.scores, two.scores)
        torch.testing.assert_close(one.boxes, two.boxes)
        assert torch.equal(one.labels, two.labels)
    assert selection.unmatched(found, wanted, 1e-6)[1] == 0


def test_candidates_and_suppression_change_what_is_chosen() -> None:
    boxes, scores = values(1)
    kinds = [kind for kind in KINDS if kind != "labels of its own"]
    plain, *others = (selection.select(boxes, scores, KINDS[kind])[0].scores.tolist() for kind in kinds)
    assert len(plain) == 20
    assert all(other != plain for other in others)


def test_detections_without_a_partner_are_counted() -> None:
    one = Detections(torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20]]), torch.tensor([0.9, 0.8]), torch.tensor([1, 2]))
    turned = Detections(one.boxes.flip(0), one.scores.flip(0), one.labels.flip(0))
    assert selection.unmatched([one], [turned], 1e-3) == (2, 0)
    other = Detections(one.boxes, one.scores, torch.tensor([1, 3]))
    assert selection.unmatched([one], [other], 1e-3) == (2, 1)
    assert selection.unmatched([Detections(one.boxes[:1], one.scores[:1], one.labels[:1])], [one], 1e-3) == (2, 1)


def test_the_plugin_of_tensorrt_takes_the_same_candidates() -> None:
    decoding = replace(PLAIN, classes=(1, 2, 3, 4), best_class_only=True)
    model = detections.add(plain_file(1, 17), decoding, "jetson-xavier-nx", 17)
    onnx.checker.check_model(model, full_check=True)
    plugin = next(node for node in model.graph.node if node.op_type == "EfficientNMS_TRT")
    assert plugin.domain == "TRT"
    given = {item.name: helper.get_attribute_value(item) for item in plugin.attribute}
    assert given["plugin_version"] == b"1" and given["background_class"] == -1 and given["box_coding"] == 0
    assert given["max_output_boxes"] == 20 and given["score_activation"] == 0
    assert given["score_threshold"] == pytest.approx(0.3) and given["iou_threshold"] == pytest.approx(0.5)
    assert [value.name for value in model.graph.output] == [
        "num_detections", "detection_boxes", "detection_scores", "detection_classes",
    ]  # fmt: skip
    kinds = [node.op_type for node in model.graph.node]
    assert "NonMaxSuppression" not in kinds and "ReduceMax" in kinds


@pytest.mark.parametrize("target", ["jetson-xavier-nx", "jetson-orin", "tensorrt-10"])
def test_a_board_takes_the_choice_that_is_written_for_it(target: str, tmp_path: Path) -> None:
    for kind, decoding in KINDS.items():
        onnx.save(detections.add(plain_file(1, 17), decoding, target, 17), str(tmp_path / "net.onnx"))
        assert check_tensorrt(tmp_path / "net.onnx", target).ok, kind


def test_the_whole_detector_gives_its_own_detections(tmp_path: Path) -> None:
    built = models.build("effp:ssd_small")
    randomise(built.model, example=built.example())
    report = export_onnx(built.model, tmp_path / "ssd.onnx", part="full", batch=2)
    assert report.detections is not None and report.detections[0] > 100 and report.detections[1] == 0
    assert report.max_relative_error["boxes"] < 1e-4 and report.max_relative_error["scores"] < 1e-4
    assert [str(port) for port in report.inputs] == ["images float[2, 3, 96, 96]"]
    assert report.outputs[0].meaning == "count" and report.outputs[1].shape == (2, 100, 4)
    assert report.decoding is not None and report.decoding.suppression == "NonMaxSuppression"
    images = torch.rand(2, 3, 96, 96)
    session = onnxruntime.InferenceSession(str(tmp_path / "ssd.onnx"), providers=["CPUExecutionProvider"])
    count, boxes, _, labels = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        wanted = built.model(list(images))[1]
    assert count[1, 0] == len(wanted["labels"])
    np.testing.assert_array_equal(labels[1, : count[1, 0]], wanted["labels"].numpy())
    np.testing.assert_allclose(boxes[1, : count[1, 0]], wanted["boxes"].numpy(), atol=1e-3)


def test_a_board_gets_the_plugin_and_32_bit_indices(tmp_path: Path) -> None:
    built = models.build("effp:ssd_small")
    randomise(built.model, example=built.example())
    report = export_onnx(built.model, tmp_path / "net.onnx", part="full", target="jetson-xavier-nx")
    assert report.target == "jetson-xavier-nx"
    assert report.decoding is not None and report.decoding.suppression == "EfficientNMS_TRT"
    assert report.detections is not None and report.detections[1] == 0  # of the twin that ONNX Runtime runs
    assert any("TensorRT only" in note for note in report.notes)
    file = onnx.load(str(tmp_path / "net.onnx"))
    whole = {item.name: item.data_type for item in file.graph.initializer}
    indices = [node.input[1] for node in file.graph.node if node.op_type == "Gather" and node.input[1] in whole]
    assert indices and all(whole[name] == TensorProto.INT32 for name in indices)


def test_detections_for_any_batch_need_the_plugin(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="free batch"):
        detections.add(_free(plain_file(1, 17)), PLAIN, "onnxruntime", 17)
    model = detections.add(_free(plain_file(1, 17)), PLAIN, "tensorrt-10", 17)
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def _free(model: onnx.ModelProto) -> onnx.ModelProto:
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def test_a_model_of_which_nothing_is_known_is_told_what_to_say(tmp_path: Path) -> None:
    net = torch.nn.Conv2d(3, 8, 1)
    with pytest.raises(ExportError, match="which outputs are boxes and scores") as caught:
        export_onnx(net, tmp_path / "net.onnx", torch.rand(1, 3, 4, 4), part="decoded")
    assert "detection=" in str(caught.value)


def test_the_user_can_say_what_outputs_mean(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 7, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).flatten(2)

    meaning = Detection(Field(0, (0, 4), dim=1), Field(0, (4, 7), dim=1), activation="softmax", background=0)
    report = export_onnx(Net(), tmp_path / "net.onnx", torch.rand(1, 3, 4, 4), part="decoded", detection=meaning)
    assert [str(port) for port in report.outputs] == ["boxes float[1, 16, 4]", "scores float[1, 16, 2]"]
    assert report.decoding is not None and report.decoding.classes == (1, 2)
    free = export_onnx(
        Net(), tmp_path / "free.onnx", torch.rand(1, 3, 4, 4), part="decoded", detection=meaning, batch="dynamic"
    )
    assert [str(port) for port in free.outputs] == ["boxes float[batch, 16, 4]", "scores float[batch, 16, 2]"]


@pytest.mark.ultralytics
def test_the_choice_is_that_of_ultralytics() -> None:
    non_max_suppression = pytest.importorskip("ultralytics.utils.nms").non_max_suppression
    boxes, scores = values(2)
    decoding = replace(PLAIN, box_format="cxcywh", best_class_only=True, iou_threshold=0.7)
    wanted = non_max_suppression(torch.cat([boxes, scores], -1).transpose(1, 2), 0.3, 0.7, max_det=20)
    pairs = [Detections(image[:, :4], image[:, 4], image[:, 5].long()) for image in wanted]
    assert selection.unmatched(selection.select(boxes, scores, decoding), pairs, 1e-4) == (40, 0)
