"""INT8 files: which layers are quantised, that the file runs, and mAP beside that of the file in float."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from effp_fx import models
from effp_fx.cli import app
from effp_fx.data import write_scenes
from effp_fx.errors import ExportError
from effp_fx.export import export_onnx, int8
from effp_fx.models.randomise import randomise


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "yolo.onnx"
    torch.manual_seed(0)
    built = models.build("effp:yolo_small")
    randomise(built.model, example=built.example())
    export_onnx(built.model, path, part="decoded")
    return path


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"images": generator.random((1, 3, 96, 96), np.float32)} for _ in range(count)]


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_convolutions_are_quantised_per_channel_and_decoding_stays(exported: Path, tmp_path: Path, method: str) -> None:
    report = int8.quantise(exported, tmp_path / "small.onnx", feeds(3), method)
    file = onnx.load(str(report.path))
    convolutions = [node for node in file.graph.node if node.op_type == "Conv"]
    assert report.images == 3 and report.layers == len(convolutions) - report.layers_in_float
    assert report.layers >= 40
    assert report.bytes < 0.5 * report.bytes_float
    scales = {item.name: item.dims for item in file.graph.initializer if item.name.endswith("_scale")}
    assert any(len(dims) == 1 and dims[0] > 1 for dims in scales.values())
    assert all(node.op_type != "QuantizeLinear" or "boxes" not in node.input[0] for node in file.graph.node)
    feed = feeds(4)[3]
    one, two = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["scores"], feed)[0]
        for path in (exported, report.path)
    )
    assert not np.array_equal(one, two)
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.8


def test_what_cannot_be_quantised_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no calibration 'median'"):
        int8.quantise(exported, tmp_path / "small.onnx", feeds(1), "median")
    with pytest.raises(ExportError, match="nothing to calibrate with"):
        int8.quantise(exported, tmp_path / "small.onnx", [])
    assert list(tmp_path.iterdir()) == []


def test_the_command_reports_map_in_float_and_int8(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", images=24, val_images=4, test_images=1, size=96)  # enough for every class
    command = ["export", "effp:yolo_small", "-o", str(tmp_path / "net.onnx"), "--randomise", "--json"]
    command += ["--int8", "qdq", "--data", str(tmp_path / "scenes"), "--calibrate", "minmax"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output[result.output.index("{") :])
    assert set(found["int8"]["map"]) == {"fp32", "int8"}
    assert found["int8"]["layers_int8"] > 40
    assert (tmp_path / "net.int8.onnx").is_file()
    assert [port["name"] for port in found["outputs"]] == ["boxes", "scores"]
    alone = CliRunner().invoke(app, ["export", "effp:yolo_small", "--int8", "qdq"])
    assert alone.exit_code == 2
    assert torch.is_grad_enabled()
