"""The rules of the TensorRT check: a small graph for each form of an op, and the verdict of each release on it."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from effp_fx import report
from effp_fx.errors import ExportError, FileFormatError
from effp_fx.export.tensorrt import Verdict, check_tensorrt, tables, target_names
from effp_fx.export.tensorrt.features import FEATURES
from tests.onnx_graphs import I64, Graph, graph, i64, nms, node, resize, unknown, weight

XAVIER, ORIN, TEN = "jetson-xavier-nx", "jetson-orin", "tensorrt-10"
S, X, R, M, W = Verdict  # supported, restricted, refused, missing, wrong

BOXES = {"shape": (1, 20, 4), "out": TensorProto.INT32}
HALVES = np.asarray([2, 2], dtype=np.float32)
RULES: dict[str, tuple[Graph, tuple[Verdict, Verdict, Verdict]]] = {
    # what it is: (graph, (verdict on Xavier with 8.5, on Orin with 8.6, on 10.1))
    "a convolution": (graph(node("Conv", "x", "w"), w=weight(8, 16, 3, 3)), (S, S, S)),
    "axes as an attribute": (graph(node("ReduceMean", axes=[2, 3])), (S, S, S)),
    "axes as an input": (graph(node("ReduceMean", "x", "axes_"), axes_=i64(2, 3), opset=18), (W, W, S)),
    "axes as an input, L2": (graph(node("ReduceL2", "x", "axes_"), axes_=i64(1), opset=18), (W, W, S)),
    "every axis as an input": (graph(node("ReduceMax", "x", "axes_"), axes_=i64(0, 1, -2, 3), opset=18), (S, S, S)),
    "axes of a sum": (graph(node("ReduceSum", "x", "axes_"), axes_=i64(1)), (S, S, S)),
    "axes of a sum, computed": (graph(node("ReduceSum", "x", "k")), (R, R, R)),
    "nothing to reduce": (graph(node("ReduceSum", noop_with_empty_axes=1)), (W, W, S)),
    "top 100": (graph(node("TopK", "x", "n", outputs=("y", "i")), n=i64(4), shape=(1, 9)), (S, S, S)),
    "top computed": (graph(node("TopK", "x", "k", outputs=("y", "i")), shape=(1, 9)), (R, S, S)),
    "top 3840": (graph(node("TopK", "x", "n", outputs=("y", "i")), n=i64(3840), shape=(1, 9000)), (S, S, R)),
    "top 3841": (graph(node("TopK", "x", "n", outputs=("y", "i")), n=i64(3841), shape=(1, 9000)), (R, R, R)),
    "top unsorted": (graph(node("TopK", "x", "n", outputs=("y", "i"), sorted=0), n=i64(4), shape=(1, 9)), (S, S, R)),
    "layer norm": (graph(node("LayerNormalization", "x", "w"), w=weight(8)), (M, S, S)),
    "layer norm, statistics": (
        graph(node("LayerNormalization", "x", "w", outputs=("y", "mean")), w=weight(8)),
        (M, R, R),
    ),
    "group norm": (
        graph(node("GroupNormalization", "x", "w", "w", num_groups=4), w=weight(16), opset=21),
        (M, S, S),
    ),
    "mish": (graph(node("Mish"), opset=18), (M, M, S)),
    "gelu": (graph(node("Gelu"), opset=20), (M, M, S)),
    "grid of opset 16": (graph(node("GridSample", "x", "g"), g=weight(1, 8, 8, 2)), (S, S, S)),
    "grid of opset 20": (graph(node("GridSample", "x", "g", mode="linear"), g=weight(1, 8, 8, 2), opset=20), (W, W, W)),
    "grid of opset 20, default": (graph(node("GridSample", "x", "g"), g=weight(1, 8, 8, 2), opset=20), (S, S, S)),
    "resize": (resize(mode="linear"), (S, S, S)),
    "resize, cubic": (resize(mode="cubic"), (X, X, X)),
    "resize, antialias": (resize(mode="linear", antialias=1), (W, W, R)),
    "resize, another transform": (resize(coordinate_transformation_mode="half_pixel_symmetric"), (R, R, R)),
    "resize, aspect ratio kept": (
        graph(
            node("Resize", "x", "", "", "n", keep_aspect_ratio_policy="not_larger"), n=i64(1, 16, 12, 20), opset=18
        ),
        (W, W, R),
    ),
    "resize, scales of two axes": (
        graph(node("Resize", "x", "", "n", axes=[2, 3]), n=HALVES, opset=18),
        (R, R, R),
    ),
    "resize, sizes of two axes": (
        graph(node("Resize", "x", "", "", "n", axes=[2, 3]), n=i64(16, 16), opset=18),
        (R, R, S),
    ),
    "pad": (graph(node("Pad", "x", "n"), n=i64(0, 0, 1, 1, 0, 0, 1, 1)), (S, S, S)),
    "pad, axes": (graph(node("Pad", "x", "n", "", "a"), n=i64(1, 1), a=i64(3), opset=18), (R, R, S)),
    "pad, axes computed": (graph(node("Pad", "x", "n", "", "k"), n=i64(1, 1), opset=18), (R, R, R)),
    "pad, around": (graph(node("Pad", "x", "n", mode="wrap"), n=i64(0, 0, 1, 1, 0, 0, 1, 1), opset=19), (R, R, S)),
    "scatter": (graph(node("ScatterND", "x", "n", "u"), n=np.zeros((1, 4), np.int64), u=weight(1)), (S, S, S)),
    "scatter, none written out": (
        graph(node("ScatterND", "x", "n", "u", reduction="none"), n=np.zeros((1, 4), np.int64), u=weight(1)),
        (S, S, R),
    ),
    "scatter, add": (
        graph(node("ScatterND", "x", "n", "u", reduction="add"), n=np.zeros((1, 4), np.int64), u=weight(1)),
        (W, W, R),
    ),
    "scatter elements, add": (
        graph(
            node("ScatterElements", "x", "n", "u", reduction="add"),
            n=np.zeros((1, 1, 1, 1), np.int64),
            u=weight(1, 1, 1, 1),
        ),
        (W, W, X),
    ),
    "slice": (graph(node("Slice", "x", "a", "b", "c"), a=i64(0), b=i64(2**63 - 1), c=i64(1)), (S, S, S)),
    "slice, axes computed": (graph(node("Slice", "x", "a", "b", "k"), a=i64(0), b=i64(4)), (R, R, R)),
    "squeeze, axes computed": (graph(node("Squeeze", "x", "k")), (R, R, R)),
    "unsqueeze, axes computed": (graph(node("Unsqueeze", "x", "k")), (R, R, R)),
    "cumsum, axis computed": (graph(node("CumSum", "x", "k")), (R, R, R)),
    "clip, bound computed": (
        graph(node("ReduceMax", outputs=("m",), keepdims=0), node("Clip", "x", "", "m")),
        (R, R, R),
    ),
    "instance norm, computed": (
        graph(
            node("ReduceMax", outputs=("m",), axes=[0, 2, 3], keepdims=0),
            node("InstanceNormalization", "x", "m", "m"),
        ),
        (R, S, S),
    ),
    "split, even": (graph(node("Split", outputs=("y", "z"), axis=1, num_outputs=2), opset=18), (S, S, S)),
    "split, uneven": (graph(node("Split", outputs=("y", "z", "v"), axis=1, num_outputs=3), opset=18), (W, W, S)),
    "pool, where from": (graph(node("MaxPool", outputs=("y", "i"), kernel_shape=[2, 2])), (R, R, R)),
    "pool, dilated": (graph(node("MaxPool", kernel_shape=[2, 2], dilations=[2, 2])), (R, R, R)),
    "batch norm, training": (
        graph(
            node("BatchNormalization", "x", "w", "w", "w", "w", outputs=("y", "m", "v"), training_mode=1), w=weight(16)
        ),
        (R, R, R),
    ),
    "einsum": (graph(node("Einsum", equation="nchw->nhwc")), (S, S, S)),
    "einsum, ellipsis": (graph(node("Einsum", equation="...w->w...")), (R, R, S)),
    "quantised": (
        graph(
            node("QuantizeLinear", "x", "s", "z", outputs=("q",)),
            node("DequantizeLinear", "q", "s", "z"),
            s=np.float32(0.1),
            z=np.int8(0),
        ),
        (S, S, S),
    ),
    "quantised, another zero": (
        graph(node("QuantizeLinear", "x", "s", "z"), s=np.float32(0.1), z=np.int8(3), out=TensorProto.INT8),
        (R, R, R),
    ),
    "suppression": (graph(node("NonMaxSuppression", "x", "scores"), shape=(1, 20, 4), out=I64), (X, X, X)),
    "where it is not 0": (graph(node("NonZero"), out=I64), (X, X, X)),
    "regions": (
        graph(node("RoiAlign", "x", "r", "b"), r=weight(2, 4), b=i64(0, 0)),
        (X, X, X),
    ),
    "an INT64 that no INT32 holds": (
        graph(node("Add", "x", "n"), n=i64(2**40), shape=(1, 4), dtype=I64, out=I64),
        (X, X, S),
    ),
    "INT64": (graph(node("Add", "x", "n"), n=i64(2), shape=(1, 4), dtype=I64, out=I64), (S, S, S)),
    "DOUBLE": (graph(node("Relu"), dtype=TensorProto.DOUBLE, out=TensorProto.DOUBLE), (X, X, X)),
    "INT32 in a maximum": (graph(node("Sigmoid"), dtype=TensorProto.INT32, out=TensorProto.INT32), (R, R, R)),
    "another one's op": (graph(node("Fancy", domain="my.ops")), (M, M, M)),
    "an op that is listed as not supported": (graph(node("Det")), (M, M, M)),
    "an op whose restrictions are not checked": (graph(node("RandomNormalLike")), (X, X, X)),
    "EfficientNMS": (graph(nms(), **BOXES), (X, X, X)),
    "EfficientNMS, without a threshold": (graph(nms(drop="iou_threshold"), **BOXES), (R, R, R)),
    "EfficientNMS, with an attribute of another plugin": (graph(nms(topk=100), **BOXES), (W, W, W)),
    "EfficientNMS, of another version": (graph(nms("2"), **BOXES), (R, R, R)),
}


@pytest.mark.parametrize("place,target", list(enumerate((XAVIER, ORIN, TEN))))
@pytest.mark.parametrize("name", RULES)
def test_each_rule(tmp_path: Path, name: str, place: int, target: str) -> None:
    write, expected = RULES[name]
    found = check_tensorrt(write(tmp_path), target)
    assert found.verdict is expected[place], report.text(report.check_table(found))
    assert found.builds is (expected[place] not in (R, M))
    assert found.ok is (expected[place] in (S, X))
    said = [finding for checked in found.nodes for finding in checked.findings]
    assert (not said) is (expected[place] is S) and all(finding.why for finding in said)


def test_a_body_is_read_too(tmp_path: Path) -> None:
    inner = helper.make_graph([node("ReduceMean", "x", "axes_", outputs=("t",))], "then", [], [unknown("t")])
    other = helper.make_graph([node("Identity", "x", outputs=("e",))], "else", [], [unknown("e")])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)
    path = graph(branch, c=np.asarray(True), axes_=i64(2), opset=18)(tmp_path)
    found = check_tensorrt(path)
    assert {checked.op: checked.verdict for checked in found.nodes} == {"If": X, "ReduceMean": W, "Identity": S}
    why = [checked.placement.why for checked in found.nodes if checked.op == "ReduceMean"]
    assert why == ["the body of a loop or branch"]


@pytest.mark.parametrize("name", target_names())
def test_every_table_has_a_word_on_every_feature_and_names_its_source(name: str) -> None:
    aim = tables.target(name)
    assert set(aim.release.features) == set(FEATURES) and len(FEATURES) == len(set(FEATURES))
    assert aim.release.source.startswith("https://") and aim.release.date
    assert len(aim.release.types) > 150 and aim.release.opsets[0] <= aim.opset <= aim.release.opsets[1]
    assert (aim.accelerator is None) == (aim.dla_cores == 0)


def test_what_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    path = graph(node("Relu"))(tmp_path)
    with pytest.raises(ExportError, match="target is not known") as caught:
        check_tensorrt(path, "jetson-nano")
    assert "jetson-xavier-nx" in str(caught.value) and "jetson-nano" in str(caught.value)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(FileFormatError, match="no ONNX file"):
        check_tensorrt(tmp_path / "text.onnx")
    with pytest.raises(FileFormatError, match="no ONNX file"):
        check_tensorrt(tmp_path / "absent.onnx")
