"""The TensorRT check of whole files: DLA placement, channels, real exports, report and command."""

import json
from pathlib import Path

import numpy as np
import pytest

import effp_fx
from effp_fx import cli, models, report
from effp_fx.export.tensorrt import TensorRTReport, Verdict, check_tensorrt
from tests.onnx_graphs import I64, Graph, graph, i64, node, resize, weight

XAVIER, ORIN, TEN = "jetson-xavier-nx", "jetson-orin", "tensorrt-10"

# --- the DLA ---


def on_dla(path: Path, target: str = XAVIER) -> dict[str, str | None]:
    """Reason for each node, None for one on the DLA."""
    return {one.op: one.placement.why for one in check_tensorrt(path, target).nodes if one.placement.device != "-"}


@pytest.mark.parametrize(
    "write,why",
    [
        (graph(node("Conv", "x", "w"), w=weight(8, 16, 3, 3)), None),
        (graph(node("Conv", "x", "w"), w=weight(8, 16, 33, 1), shape=(1, 16, 64, 8)), "kernel size 33, the DLA"),
        (graph(node("Conv", "x", "w", strides=[9, 1]), w=weight(8, 16, 1, 1)), "stride 9, the DLA takes 1 to 8"),
        (graph(node("Conv", "x", "w", pads=[3, 3, 3, 3]), w=weight(8, 16, 3, 3)), "padding as large as the kernel"),
        (graph(node("Conv", "x", "w"), w=weight(8, 16, 3, 3), shape=("n", 16, 8, 8)), "a size that is free or unknown"),
        (graph(node("ConvTranspose", "x", "w", strides=[2, 2]), w=weight(16, 8, 2, 2)), None),
        (graph(node("ConvTranspose", "x", "w", pads=[1, 1, 1, 1]), w=weight(16, 8, 2, 2)), "padding of a transposed"),
        (graph(node("ConvTranspose", "x", "w", group=2), w=weight(16, 8, 2, 2)), "groups of a transposed"),
        (graph(node("MaxPool", kernel_shape=[2, 2])), None),
        (graph(node("MaxPool", kernel_shape=[13, 13], pads=[6] * 4)), "window 13, the DLA takes 1 to 8"),
        (graph(node("GlobalAveragePool")), "the DLA has no GlobalAveragePool"),
        (graph(node("Clip", "x", "a", "b"), a=np.float32(0), b=np.float32(6)), None),
        (graph(node("Clip", "x", "a", "b"), a=np.float32(-1), b=np.float32(1)), "a clip other than from 0"),
        (graph(node("LeakyRelu", alpha=0.1)), None),
        (graph(node("LeakyRelu", alpha=-0.1)), "a negative slope"),
        (graph(node("HardSwish")), "the DLA has no HardSwish"),
        (graph(node("Add", "x", "w"), w=weight(16, 1, 1)), None),
        (graph(node("Add", "x", "w"), w=weight(8)), "shapes that are not spread"),
        (graph(node("Concat", "x", "x", axis=1)), None),
        (graph(node("Concat", "x", "x", axis=2)), "along another axis"),
        (resize(mode="nearest"), None),
        (graph(node("Resize", "x", "", "s", mode="linear"), s=np.float32([1, 1, 8, 8])), "scale (linear) 8"),
        (graph(node("Softmax", axis=1)), "this DLA has no softmax"),
        (graph(node("Transpose", perm=[0, 2, 3, 1])), "the DLA has no Transpose"),
        (graph(node("Relu"), shape=(1, 16)), "a tensor of 2 dimensions"),
        (graph(node("Abs")), None),
        (graph(node("Exp")), "the DLA has no Exp"),
    ],
)
def test_placement(tmp_path: Path, write: Graph, why: str | None) -> None:
    ((_, found),) = on_dla(write(tmp_path)).items()
    assert found is None if why is None else why in (found or "")


def test_a_softmax_runs_on_the_dla_of_an_orin_only(tmp_path: Path) -> None:
    path = graph(node("Softmax", axis=1))(tmp_path)
    assert on_dla(path) == {"Softmax": "this DLA has no softmax"} and on_dla(path, ORIN) == {"Softmax": None}
    assert not check_tensorrt(path, TEN).dla


def test_a_network_with_ranges_written_into_it_does_not_run_on_the_dla(tmp_path: Path) -> None:
    path = graph(
        node("QuantizeLinear", "x", "s", "z", outputs=("q",)),
        node("DequantizeLinear", "q", "s", "z", outputs=("d",)),
        node("Conv", "d", "w"),
        w=weight(8, 16, 1, 1),
        s=np.float32(0.1),
        z=np.int8(0),
    )(tmp_path)
    assert all("Q/DQ" in (why or "") for why in on_dla(path).values())


def test_share_and_changes_of_side(tmp_path: Path) -> None:
    """conv - relu - exp (GPU) - conv, and beside them a branch that needs no change of its own."""
    path = graph(
        node("Conv", "x", "w", outputs=("a",)),
        node("Relu", "a", outputs=("b",)),
        node("Exp", "b", outputs=("c",)),
        node("Exp", "x", outputs=("side",)),
        node("Conv", "c", "v", outputs=("d",)),
        node("Conv", "side", "v", outputs=("f",)),
        node("Transpose", "d", outputs=("g",), perm=[0, 1, 3, 2]),
        node("MatMul", "g", "g", outputs=("y",)),
        w=weight(16, 16, 1, 1),
        v=weight(16, 16, 1, 1),
    )(tmp_path)
    one = check_tensorrt(path).dla["FP16"]
    assert (one.layers_on_dla, one.layers_on_gpu) == (4, 4)
    assert (one.switches, one.loadables) == (3, 2)
    work, product = 3 * 64 * 16 * 16, 16 * 8 * 8 * 8
    assert one.macs_share == pytest.approx(work / (work + product))


def test_work_is_counted_as_in_torch(tmp_path: Path) -> None:
    path = graph(
        node("Conv", "x", "w", outputs=("a",), group=4),
        node("ConvTranspose", "a", "v"),
        w=weight(8, 4, 3, 3),
        v=weight(8, 6, 2, 2),
    )(tmp_path)
    assert [one.macs for one in check_tensorrt(path).nodes] == [8 * 36 * 4 * 9, 8 * 36 * 6 * 4]


def test_rounding_channels_up(tmp_path: Path) -> None:
    path = graph(
        node("Conv", "x", "w", outputs=("a",)),  # an image: its 3 channels are left alone
        node("Conv", "a", "v", outputs=("b",)),
        node("Conv", "b", "d", outputs=("y",), group=40),  # depthwise: no channels to combine
        shape=(1, 3, 8, 8),
        w=weight(24, 3, 1, 1),
        v=weight(40, 24, 1, 1),
        d=weight(40, 1, 1, 1),
    )(tmp_path)
    costs = check_tensorrt(path).channels
    assert not costs["FP16"].odd and costs["FP16"].extra == 0 and costs["FP16"].layers == 2
    dla = costs["DLA"]
    assert [(layer.inputs, layer.outputs) for layer in dla.odd] == [(3, 24), (24, 40)]
    assert dla.padded_macs == 64 * (3 * 32 + 32 * 48) and dla.macs == 64 * (3 * 24 + 24 * 40)
    assert costs["INT8"].padded_macs == 64 * (3 * 32 + 32 * 64)


# --- the whole file ---


def test_notes_on_the_file(tmp_path: Path) -> None:
    path = graph(node("Cast", to=I64), shape=("batch", 3), out=I64, opset=18)(tmp_path)
    found = check_tensorrt(path)
    text = " | ".join(found.notes)
    assert "opset 18 is outside the 7 to 17" in text and "INT64 becomes INT32 on the device: y" in text
    assert "--minShapes" in text and found.verdict is Verdict.SUPPORTED
    assert not any("INT64" in note for note in check_tensorrt(path, TEN).notes)


def export(folder: Path, name: str, opset: int) -> TensorRTReport:
    built = models.build(name)
    path = folder / f"{opset}.onnx"
    effp_fx.export_onnx(built.model, path, built.given, opset=opset)
    return check_tensorrt(path)


@pytest.mark.slow
@pytest.mark.long
def test_ssd300_is_right_at_opset_17_and_silently_wrong_at_18(tmp_path: Path) -> None:
    name = "torchvision:ssd300_vgg16"
    good, bad = export(tmp_path, name, 17), export(tmp_path, name, 18)
    assert good.ok and good.verdict is Verdict.SUPPORTED
    wrong = [one for one in bad.nodes if one.verdict is Verdict.WRONG]
    assert [one.op for one in wrong] == ["ReduceL2"] and bad.builds and not bad.ok
    dense = good.dla["FP16"]
    assert 0.9 < dense.macs_share < 1 and (dense.switches, dense.loadables) == (4, 2)
    fallen = [one for one in good.nodes if one.op == "Conv" and one.placement.device == "GPU"]
    assert [one.placement.why for one in fallen] == ["padding as large as the kernel"]  # the dilated fc6
    assert sum(one.macs for one in good.nodes) == pytest.approx(34.8e9, rel=0.1)


@pytest.mark.slow
def test_squeeze_excitation_is_silently_wrong_at_18(tmp_path: Path) -> None:
    found = export(tmp_path, "torchvision:mobilenet_v3_small", 18)
    assert {one.op for one in found.nodes if one.verdict is Verdict.WRONG} == {"ReduceMean"}


# --- report and command ---


def test_the_report_says_why_and_what_to_do(tmp_path: Path) -> None:
    found = check_tensorrt(graph(node("ReduceMean", "x", "axes_"), axes_=i64(2, 3), opset=18)(tmp_path))
    shown = report.text(report.check_table(found))
    assert shown.startswith("rule.onnx, opset 18: silently wrong on Jetson Xavier NX (JetPack 5.1, TensorRT 8.5.2)")
    assert "reduces over ALL dimensions" in shown and "export at opset 17" in shown and "was not run" in shown
    data = json.loads(json.dumps(report.check_json(found)))
    assert data["verdict"] == "silently wrong" and data["counts"]["silently wrong"] == 1 and data["builds"] is True
    (entry,) = data["nodes"]
    assert entry["findings"][0]["rule"] == "reduce-axes-input" and entry["why_not_dla"] == "the DLA has no ReduceMean"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(graph(node("Relu"))(tmp_path))
    assert cli.main(["check", good, "--target", ORIN]) == 0
    assert "supported on Jetson Orin" in capsys.readouterr().out
    bad = str(graph(node("Mish"), opset=18)(tmp_path))
    assert cli.main(["check", bad, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "missing"
    assert cli.main(["check", bad, "--target", "toaster"]) == 1
    assert "this target is not known" in capsys.readouterr().err
