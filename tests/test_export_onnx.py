"""The ONNX export: files that ONNX Runtime runs with the outputs of PyTorch, and what is refused, nothing written."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from effp_fx import models
from effp_fx.capture import capture
from effp_fx.errors import ExportError
from effp_fx.export import export_onnx, exporters, onnx_file, parity
from effp_fx.export.layer_names import name_convolutions
from effp_fx.inputs import as_example
from effp_fx.models.randomise import randomise


class Net(nn.Module):
    """Convolutions with batch norm, written in place, and a head given by the test."""

    def __init__(self, after: Callable[[Tensor], object] = lambda x: x) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(8, 4, 1)
        self.after = after

    def forward(self, x: Tensor) -> object:
        x = self.body(x)
        x[:, :2] *= 2
        return self.after(self.head(x))


def net(after: Callable[[Tensor], object] = lambda x: x) -> Net:
    torch.manual_seed(0)
    model = Net(after)
    randomise(model)
    return model.eval()


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def run(path: Path, images: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: images.numpy()}))


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_the_file_is_of_the_opset_asked_for_and_computes_the_same(tmp_path: Path, opset: int) -> None:
    model, path = net(), tmp_path / "net.onnx"
    report = export_onnx(model, path, IMAGES, opset=opset)
    file = onnx.load(str(path))
    onnx.checker.check_model(file, full_check=True)
    assert exporters.opset_of(file) == report.opset == opset
    assert not any(node.op_type == "BatchNormalization" for node in file.graph.node)
    assert [value.name for value in file.graph.input] == ["images"]
    assert [str(port) for port in report.outputs] == ["output float[2, 4, 8, 8]"]
    assert report.worst < 1e-5
    assert report.bytes == path.stat().st_size
    assert report.nodes_after == len(file.graph.node)
    other = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(run(path, other)[0], model(other.clone()).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 18])
def test_a_free_batch_takes_any_batch(tmp_path: Path, opset: int) -> None:
    def heads(x: Tensor) -> dict[str, Tensor]:
        count = x.shape[0]
        grid = torch.zeros(count, 1, 8, 8)
        return {
            "joined": torch.cat([x, grid.expand(count, 2, 8, 8)], 1).flatten(2),
            "rows": x.permute(0, 2, 3, 1).reshape(count * 64, 4),
            "split": x.view(count, 2, 2, 64).transpose(1, 2).reshape(count, 4, 64),
        }

    model, path = net(heads), tmp_path / "net.onnx"
    report = export_onnx(model, path, IMAGES[:1], opset=opset, dynamic_batch=True)
    assert [str(port) for port in report.inputs] == ["images float[batch, 3, 8, 8]"]
    assert [str(port) for port in report.outputs] == [
        "joined float[batch, 6, 64]",
        "rows float[batch_x_64, 4]",
        "split float[batch, 4, 64]",
    ]
    for batch in (1, 2, 5):
        images = torch.rand(batch, 3, 8, 8)
        with torch.no_grad():
            wanted = model(images.clone())
        for found, value in zip(run(path, images), wanted.values(), strict=True):
            np.testing.assert_allclose(found, value.numpy(), rtol=1e-4, atol=1e-5)


def test_a_batch_that_a_loop_runs_over_is_not_freed(tmp_path: Path) -> None:
    model = net(lambda x: torch.stack([one * 2 for one in x]))
    with pytest.raises(ExportError, match="other ops for another batch size") as caught:
        export_onnx(model, tmp_path / "net.onnx", IMAGES, dynamic_batch=True)
    assert "dynamic_batch=False" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_images_has_no_batch_to_free(tmp_path: Path) -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, images: list[Tensor]) -> Tensor:
            return self.net(torch.stack(images))

    report = export_onnx(Lists(), tmp_path / "net.onnx", ([IMAGES[0], IMAGES[1]],))
    assert [port.name for port in report.inputs] == ["image_0", "image_1"]
    with pytest.raises(ExportError, match="takes a list of images"):
        export_onnx(Lists(), tmp_path / "two.onnx", ([IMAGES[0], IMAGES[1]],), dynamic_batch=True)


def test_without_simplification_the_exporters_nodes_stand(tmp_path: Path) -> None:
    report = export_onnx(net(), tmp_path / "net.onnx", IMAGES, simplify=False)
    assert report.nodes_after == report.nodes_before
    assert report.worst < 1e-5


def test_the_model_is_left_as_it_was_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = net().train()
    model.head.weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_onnx(model, tmp_path / "net.onnx", IMAGES)
        export_onnx(model, tmp_path / "net.onnx", IMAGES, opset=18)
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert model.training and not model.head.weight.requires_grad and model.body[0].weight.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"part": "boxes"}, "network, decoded, full"),
        ({"target": "jetson-nano"}, "jetson-xavier-nx"),
        ({"batch": 0}, "a number of images"),
        ({"batch": "any"}, "a number of images"),
        ({"opset": 9}, "13 to 23"),
        ({"opset": 99}, "13 to 23"),
        ({"opset": "17"}, "13 to 23"),
    ],
)
def test_what_cannot_be_is_refused_at_once(tmp_path: Path, options: dict[str, object], text: str) -> None:
    with pytest.raises(ExportError) as caught:
        export_onnx(net(), tmp_path / "net.onnx", IMAGES, **options)  # type: ignore[arg-type]  # that is the point
    assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(net(), tmp_path / "no" / "net.onnx", IMAGES)
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(net(), tmp_path, IMAGES)


def test_an_op_that_onnx_has_not_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("before")
    with pytest.raises(ExportError, match="opset 17") as caught:
        export_onnx(net(lambda x: torch.special.bessel_j0(x)), path, IMAGES)
    assert "bessel_j0" in str(caught.value)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]


def test_a_value_that_python_read_is_found_out(tmp_path: Path) -> None:
    model = net(lambda x: x * float(x.abs().max()))
    with pytest.raises(ExportError, match="does not compute the same") as caught:
        export_onnx(model, tmp_path / "net.onnx", IMAGES)
    assert "Python read" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: onnx.ModelProto) -> tuple[onnx.ModelProto, None]:
        weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0, 0] *= 1.5
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return model, None

    monkeypatch.setattr(onnx_file, "simplify", spoil)
    with pytest.raises(ExportError, match="does not compute the same"):
        export_onnx(net(), tmp_path / "net.onnx", IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_a_file_stamped_with_another_opset_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = exporters.write
    monkeypatch.setattr(exporters, "write", lambda net, inputs, path, _, names: plain(net, inputs, path, 16, names))
    with pytest.raises(ExportError, match="another opset") as caught:
        export_onnx(net(), tmp_path / "net.onnx", IMAGES)
    assert "opset 16" in str(caught.value)


def test_weights_beyond_one_file_stand_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    monkeypatch.setattr(onnx_file, "ONE_FILE", 1000)
    report = export_onnx(model, tmp_path / "net.onnx", IMAGES)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert report.bytes == sum(entry.stat().st_size for entry in tmp_path.iterdir())
    with torch.no_grad():
        wanted = model(IMAGES.clone()).numpy()
    np.testing.assert_allclose(run(tmp_path / "net.onnx", IMAGES)[0], wanted, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="bfloat16"):
        export_onnx(net().bfloat16(), tmp_path / "net.onnx", IMAGES.bfloat16())


def test_difference_counts_what_is_not_finite() -> None:
    inf = float("inf")
    one = torch.tensor([1.0, -inf, 3.0])
    assert parity.difference(one, one) == (0.0, 0.0)
    assert parity.difference(one, torch.tensor([1.0, -inf, 4.0])) == (1.0, 0.25)
    assert parity.difference(one, torch.tensor([1.0, 2.0, 3.0])) == (inf, inf)
    assert parity.difference(one, torch.tensor([1.0])) == (inf, inf)
    assert parity.difference(torch.tensor([1, 2]), torch.tensor([1, 4])) == (2.0, 0.5)
    assert parity.difference(torch.zeros(0), torch.zeros(0)) == (0.0, 0.0)


@pytest.mark.slow
def test_ssd300_leaves_its_raw_heads(tmp_path: Path) -> None:
    built = models.build("torchvision:ssd300_vgg16")
    randomise(built.model)
    report = export_onnx(built.model, tmp_path / "ssd.onnx")
    assert not report.own_outputs
    assert [str(port) for port in report.inputs] == ["image float[3, 300, 300]"]
    assert [str(port) for port in report.outputs] == [
        "head.regression_head float[1, 8732, 4]",
        "head.classification_head float[1, 8732, 91]",
    ]
    assert report.worst < 1e-3


@pytest.mark.slow
@pytest.mark.ultralytics
@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo11n.yaml"])
def test_yolo_is_exported_whole_for_any_batch(tmp_path: Path, name: str) -> None:
    pytest.importorskip("ultralytics")
    built = models.build(f"ultralytics:{name}")
    randomise(built.model)
    report = export_onnx(built.model, tmp_path / "yolo.onnx", as_example(built.example()), dynamic_batch=True)
    assert report.own_outputs
    assert str(report.outputs[0]).startswith("output_0 float[batch, 84, ")
    assert report.worst < 1e-3


class Shared(nn.Module):
    """One convolution over two sizes, as the heads of pyramids have it, and one of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.head = nn.ModuleList([nn.Conv2d(6, 6, 1)])
        self.up = nn.ConvTranspose2d(6, 4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.first(x)
        return self.head[0](x), self.head[0](x[..., ::2, ::2]), self.up(x)


@pytest.mark.parametrize("opset", [17, 18])
def test_convolutions_bear_the_names_of_their_modules(tmp_path: Path, opset: int) -> None:
    model, path = Shared().eval(), tmp_path / "net.onnx"
    export_onnx(model, path, IMAGES, opset=opset)
    file = onnx.load(str(path)).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.initializer}
    found = {node.name: values[node.input[1]] for node in file.node if node.op_type.startswith("Conv")}
    assert set(found) == {"first", "head.0", "head.0 (2)", "up"}
    for name, value in found.items():
        assert np.array_equal(value, model.get_submodule(name.removesuffix(" (2)")).weight.detach().numpy())


@pytest.mark.parametrize("many", [1, 4])
def test_other_convolutions_than_the_graph_has_keep_their_names(tmp_path: Path, many: int) -> None:
    """Fewer of them, or as many of another size."""
    path = tmp_path / "net.onnx"
    export_onnx(Shared().eval(), path, IMAGES)
    other = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(many))).eval()
    file = onnx.load(str(path))
    before = [node.name for node in file.graph.node]
    name_convolutions(file, capture(other, as_example(IMAGES)).graph_module)
    assert [node.name for node in file.graph.node] == before
