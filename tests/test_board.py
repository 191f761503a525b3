"""What run.py and check.py share: pictures to inputs, outputs to detections, their sets, TensorRT's calls, times."""

import ctypes
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn.functional import interpolate

from effp_fx import models
from effp_fx.export import parts
from effp_fx.export.handoff import pictures
from effp_fx.export.handoff.board.runtime import detections, engine, images, timing
from effp_fx.export.handoff.board.runtime.bundle import Failure
from effp_fx.models.randomise import randomise
from tests import bundle

HOW: dict[str, Any] = {
    "align": "centre",
    "color": "RGB",
    "height": 48,
    "mean": [0.1, 0.2, 0.3],
    "pad_value": 114,
    "resize": "letterbox",
    "scale": 1 / 255,
    "std": [0.5, 0.6, 0.7],
    "width": 64,
}
CHOICE: dict[str, Any] = {
    "best_class_only": False,
    "box_format": "xyxy",
    "candidates": None,
    "candidates_per": "image",
    "classes": [1, 2, 3],
    "iou_threshold": 0.5,
    "levels": [300],
    "max_detections": 100,
    "normalised": False,
    "score_threshold": 0.05,
    "suppression": None,
}


# --- pictures ---


@pytest.mark.parametrize("size", [(36, 48), (200, 90), (48, 64)])
def test_resizing_is_bilinear(size: tuple[int, int]) -> None:
    picture = pictures.drawn(0, *size)
    made = images.resize(picture, 48, 64)
    tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
    wanted = interpolate(tensor, (48, 64), mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    assert made.dtype == np.uint8 and np.abs(made.astype(float) - wanted).max() <= 0.51


@pytest.mark.parametrize("resize,align", [("stretch", "centre"), ("letterbox", "centre"), ("letterbox", "corner")])
@pytest.mark.parametrize("size", [(100, 50), (50, 100), (96, 128)])
def test_boxes_find_their_way_back(size: tuple[int, int], resize: str, align: str) -> None:
    picture = np.zeros((*size, 3), dtype=np.uint8)
    high, wide = size
    picture[high // 4 : high // 2, wide // 4 : wide // 2] = 255
    fitted, placed = images.fit(picture, {**HOW, "resize": resize, "align": align})
    assert fitted.shape == (48, 64, 3)
    rows, columns = np.nonzero(fitted[..., 0] > 150)
    box = np.asarray([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], dtype=np.float32)
    wanted = [wide // 4, high // 4, wide // 2, high // 2]
    np.testing.assert_allclose(placed.back(box)[0], wanted, atol=1.6 * max(high / 48, wide / 64))
    outside = placed.back(np.asarray([[-500, -500, 900, 900]], dtype=np.float32))
    np.testing.assert_array_equal(outside, [[0, 0, wide, high]])


def test_normalising() -> None:
    fitted = pictures.drawn(1, 48, 64)
    values = images.normalise(fitted, HOW)
    wanted = (fitted[5, 7] / 255 - np.asarray(HOW["mean"])) / np.asarray(HOW["std"])
    np.testing.assert_allclose(values[:, 5, 7], wanted, rtol=1e-5)
    swapped = images.normalise(fitted, {**HOW, "color": "BGR", "mean": [0, 0, 0], "std": [1, 1, 1]})
    np.testing.assert_allclose(swapped[:, 5, 7], fitted[5, 7, ::-1] / 255, rtol=1e-5)
    assert images.normalise(np.stack([fitted, fitted]), HOW).shape == (2, 3, 48, 64)


def test_pictures_are_written_and_read(tmp_path: Path) -> None:
    picture = pictures.drawn(2, 20, 30)
    images.write_png(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    np.testing.assert_array_equal(images.read(tmp_path / "a.png"), picture)
    Image.fromarray(picture).save(tmp_path / "b.ppm")
    np.testing.assert_array_equal(images.read(tmp_path / "b.ppm"), picture)
    np.save(tmp_path / "c.npy", picture)
    np.testing.assert_array_equal(images.read(tmp_path / "c.npy"), picture)
    assert [path.name for path in images.files(tmp_path)] == ["a.png", "b.ppm", "c.npy"]
    (tmp_path / "d.jpg").write_text("no picture")
    np.save(tmp_path / "e.npy", np.zeros(3))
    for name, text in (("d.jpg", "cannot be read"), ("e.npy", "not uint8"), ("f.png", "is not there")):
        with pytest.raises(Failure, match=text):
            images.read(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failure, match="no picture in"):
        images.files(tmp_path / "empty")


def test_frames_are_drawn_inside_the_picture() -> None:
    picture = np.zeros((60, 80, 3), dtype=np.uint8)
    boxes = np.asarray([[10, 10, 40, 30], [-20, 50, 200, 90]], dtype=np.float32)
    drawn = images.draw(picture, boxes, [0, 1], ["one", "two"])
    assert drawn[30, 20].any() and not drawn[25, 25].any() and not picture.any()


# --- detections ---


def candidates(seed: int, count: int = 300) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 40, (count, 2))], 1).astype(np.float32)
    return boxes, random.random((count, 3)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_torchvisions(seed: int) -> None:
    boxes, scores = candidates(seed)
    labels = scores.argmax(1)
    order = np.argsort(-scores.max(1), kind="stable")
    kept = order[detections.suppress(boxes[order], labels[order], 0.4, 1000)]
    exact = [torch.from_numpy(array).double() for array in (boxes, scores.max(1))]  # it moves classes apart, and rounds
    wanted = torchvision.ops.batched_nms(*exact, torch.from_numpy(labels), 0.4)
    assert kept.tolist() == wanted.tolist()
    few = detections.suppress(boxes[order], labels[order], 0.4, 5)
    assert order[few].tolist() == wanted.tolist()[:5]


@pytest.mark.parametrize(
    "per,options,count",
    [
        ("image", {"candidates": 7}, 7),
        ("class", {"candidates": 7}, 21),
        ("level", {"candidates": 7, "levels": [100, 150, 50]}, 21),
        ("anchor", {"candidates": 7, "score_threshold": 0.0}, 21),
        ("image", {"best_class_only": True, "score_threshold": 0.0}, 300),
        ("image", {"best_class_only": True, "max_detections": 9}, 9),
    ],
)
def test_candidates(per: str, options: dict[str, Any], count: int) -> None:
    boxes, scores = candidates(4)
    choice = {**CHOICE, "iou_threshold": None, "max_detections": 1000, "candidates_per": per, **options}
    outputs, meanings = {"b": boxes[None], "s": scores[None]}, {"b": "boxes", "s": "scores"}
    (found,) = detections.detect(outputs, meanings, choice, (64, 48))
    assert len(found.scores) == count and (np.diff(found.scores) <= 0).all()
    assert set(found.labels) <= {1, 2, 3}
    if per == "class":
        for column in range(3):
            best = np.sort(scores[:, column])[::-1][:7]
            np.testing.assert_array_equal(found.scores[found.labels == column + 1], best)


def test_box_formats_and_files_that_hold_detections() -> None:
    scores = np.asarray([[[0.9, 0.1]]], dtype=np.float32)
    centre = np.asarray([[[0.5, 0.5, 0.2, 0.4]]], dtype=np.float32)
    choice = {**CHOICE, "box_format": "cxcywh", "normalised": True, "classes": [5, 9], "score_threshold": 0.3}
    (found,) = detections.detect({"b": centre, "s": scores}, {"b": "boxes", "s": "scores"}, choice, (100, 50))
    np.testing.assert_allclose(found.boxes, [[40, 15, 60, 35]], rtol=1e-5)
    assert found.labels.tolist() == [5]
    meanings = {"n": "count", "b": "detection boxes", "s": "detection scores", "c": "detection classes"}
    outputs = {
        "n": np.asarray([[1]], dtype=np.int32),
        "b": np.asarray([[[0.4, 0.3, 0.6, 0.7], [0, 0, 1, 1]]], dtype=np.float32),
        "s": np.asarray([[0.9, 0.8]], dtype=np.float32),
        "c": np.asarray([[5, 9]], dtype=np.int32),
    }
    (again,) = detections.detect(outputs, meanings, choice, (100, 50))
    np.testing.assert_allclose(again.boxes, found.boxes, rtol=1e-5)
    assert again.labels.tolist() == [5]


def test_detections_are_compared_as_sets() -> None:
    boxes = np.asarray([[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 10, 10]], dtype=np.float32)
    one = detections.Detections(boxes, np.asarray([0.9, 0.8, 0.7]), np.asarray([1, 1, 2]))
    turned = detections.Detections(boxes[::-1], one.scores[::-1], one.labels[::-1])
    assert detections.agreement(one, turned, 1e-6) == (6, 6)
    assert detections.agreement(one, turned._replace(labels=np.asarray([3, 1, 1])), 1e-6) == (4, 6)
    assert detections.agreement(one, turned._replace(scores=one.scores[::-1] + 0.1), 1e-2) == (0, 6)
    assert detections.agreement(one, turned._replace(boxes=boxes[::-1] + 0.5), 1.0) == (2, 6)
    fewer = detections.Detections(boxes[:1], one.scores[:1], one.labels[:1])
    assert detections.agreement(one, fewer, 1e-6) == (2, 4)


def decoded(model: torch.nn.Module, image: torch.Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Boxes and scores of every anchor as PyTorch computes them, and how they are chosen from."""
    meaning = parts.detection_of(model, None, "decoded")
    recorded = parts.record(model, models.example_for(model), meaning, False, lambda _: None)
    with torch.no_grad():
        outputs = recorded.part.graph_module(image)
    choice = {**CHOICE, **{key: value for key, value in vars(recorded.decoding).items()}}
    return dict(zip(recorded.part.outputs, (value.numpy() for value in outputs), strict=True)), choice


@pytest.mark.slow
def test_the_board_finds_what_a_torchvision_model_finds() -> None:
    torch.manual_seed(0)
    model = models.build("torchvision:ssdlite320_mobilenet_v3_large").model
    randomise(model, 0, example=models.example_for(model))
    how = {**HOW, "height": 320, "width": 320, "resize": "stretch"}
    image = torch.from_numpy(images.prepare(pictures.drawn(5), how)[0])
    outputs, choice = decoded(model, image[None])
    (found,) = detections.detect(outputs, {"boxes": "boxes", "scores": "scores"}, choice, (320, 320))
    with torch.no_grad():
        (own,) = model.eval()([image])
    wanted = detections.Detections(*(own[key].numpy() for key in ("boxes", "scores", "labels")))
    partners, count = detections.agreement(wanted, found, 1e-4, 0.98)
    assert count > 100 and partners / count > 0.99


@pytest.mark.ultralytics
@pytest.mark.slow
def test_the_board_finds_what_yolo_finds() -> None:
    from ultralytics.utils.nms import non_max_suppression

    model = bundle.yolo().eval()
    image = torch.from_numpy(images.prepare(pictures.drawn(5), {**HOW, "height": 320, "width": 320})[0])[None]
    outputs, choice = decoded(model, image)
    (found,) = detections.detect(outputs, {"boxes": "boxes", "scores": "scores"}, choice, (320, 320))
    with torch.no_grad():
        (rows,) = non_max_suppression(model(image)[0], choice["score_threshold"], choice["iou_threshold"], max_det=300)
    wanted = detections.Detections(rows[:, :4].numpy(), rows[:, 4].numpy(), rows[:, 5].numpy().astype(np.int64))
    partners, count = detections.agreement(wanted, found, 1e-4, 0.98)
    assert count > 20 and partners / count > 0.98


# --- TensorRT: the names and the order of the calls, on memory of the host ---


class Library:
    """libcudart, on the host."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.fail = 0
        self.cudaGetErrorString = lambda status: b"out of memory"

    def cudaStreamCreate(self, made: Any) -> int:
        made._obj.value = 7
        return 0

    def cudaMalloc(self, made: Any, size: Any) -> int:
        buffer = ctypes.create_string_buffer(size.value)
        made._obj.value = ctypes.addressof(buffer)
        self.held[ctypes.addressof(buffer)] = buffer
        return self.fail

    def cudaFree(self, address: Any) -> int:
        self.held.pop(address.value)
        return 0

    def cudaMemcpyAsync(self, to: Any, source: Any, size: Any, way: Any, stream: Any) -> int:
        assert stream.value == 7 and way.value in (1, 2)
        ctypes.memmove(to, source, size.value)
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:
        return 0


class Engine:
    """An engine that doubles its input and gives halves; its own execution context too."""

    num_io_tensors = 2

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def create_execution_context(self) -> "Engine":
        return self

    def get_tensor_name(self, at: int) -> str:
        return ("images", "boxes")[at]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "images" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "float" if name == "images" else "half"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] == 1

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        count = int(np.prod(self.shape))
        given = np.frombuffer(ctypes.string_at(self.addresses["images"], 4 * count), dtype=np.float32)
        data = (2 * given).astype(np.float16).tobytes()
        ctypes.memmove(self.addresses["boxes"], data, len(data))
        return True


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    fake: Any = types.ModuleType("tensorrt")
    fake.Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
    fake.init_libnvinfer_plugins = lambda logger, name: True
    fake.TensorIOMode = type("Mode", (), {"INPUT": "in", "OUTPUT": "out"})
    fake.DataType = type("DataType", (), {"FLOAT": "float", "HALF": "half", "INT32": "int32"})
    built = {b"plan": Engine()}
    methods = {"__init__": lambda _, logger: None, "deserialize_cuda_engine": lambda _, data: built.get(data)}
    fake.Runtime = type("Runtime", (), methods)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(engine, "_first_library", lambda: made)
    return made


def test_an_engine_of_tensorrt_is_run(tmp_path: Path, library: Library) -> None:
    path = tmp_path / "model.fp16.dla0.engine"
    path.write_bytes(b"plan")
    made = engine.TensorRT(path)
    assert (made.name, made.precision) == ("tensorrt", "fp16")
    for size in (4, 4, 9):  # memory is kept, and grows where it must
        given = np.arange(size, dtype=np.float64).reshape(1, size)
        (found,) = made.run({"images": given}).values()
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, 2 * given)
    assert len(library.held) == 2
    with pytest.raises(Failure, match="does not take images of shape"):
        made.run({"images": np.zeros((2, 2), dtype=np.float32)})
    library.fail = 2
    with pytest.raises(Failure, match="CUDA failed at 400 bytes: out of memory"):
        made.run({"images": np.zeros((1, 100), dtype=np.float32)})
    path.write_bytes(b"of another board")
    with pytest.raises(Failure, match=r"run \./build\.sh here"):
        engine.TensorRT(path)


# --- times ---


def test_percentiles() -> None:
    times = timing.Times()
    for _ in range(3):
        with times.step("network"):
            pass
    times.forget()
    assert times.summary() == {}
    with times.step("prepare"), times.step("network"):
        pass
    summary = times.summary()
    assert set(summary) == {"prepare", "network", "all"}
    assert summary["all"]["p50_ms"] == pytest.approx(summary["prepare"]["p50_ms"] + summary["network"]["p50_ms"])
    assert "p99" in timing.table(summary)
