"""Files of opset 18 restated in older opsets compute the same, or are refused with the op's name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from effp_fx.errors import ExportError
from effp_fx.export import export_onnx, exporters, identities, integers
from effp_fx.export.lower_opset import lowered

X = np.random.default_rng(0).standard_normal((2, 6, 5, 4)).astype(np.float32)


def model(kind: str, constants: dict[str, Any], outputs: int = 1, **attributes: Any) -> onnx.ModelProto:
    names = [f"y{at}" for at in range(outputs)]
    made = helper.make_graph(
        [helper.make_node(kind, ["x", *constants], names, name="the_op", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(file: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": X}))


AXES = np.array([2, 3], np.int64)
FORMS: dict[str, tuple[int, Callable[[], onnx.ModelProto]]] = {
    "mean over axes": (17, lambda: model("ReduceMean", {"axes": AXES}, keepdims=0)),
    "norm over all": (17, lambda: model("ReduceL2", {})),
    "mean over nothing": (
        17,
        lambda: model("ReduceMean", {"axes": np.array([], np.int64)}, noop_with_empty_axes=1),
    ),
    "even split": (17, lambda: model("Split", {}, outputs=3, axis=1, num_outputs=3)),
    "uneven split": (13, lambda: model("Split", {}, outputs=2, axis=2, num_outputs=2)),
    "pad of two axes": (17, lambda: model("Pad", {"p": np.array([1, 0, 0, 2]), "v": np.float32(3), "a": AXES})),
    "layer norm": (
        16,
        lambda: model("LayerNormalization", {"s": X[0, 0, 0] + 1, "b": X[1, 0, 0]}, axis=-1, epsilon=1e-3),
    ),
    "layer norm over three": (16, lambda: model("LayerNormalization", {"s": X[0] + 1}, axis=1)),
    "hard swish": (13, lambda: model("HardSwish", {})),
    "reshape": (13, lambda: model("Reshape", {"to": np.array([0, -1])}, allowzero=0)),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_older_opset_computes_the_same(form: str) -> None:
    opset, make = FORMS[form]
    file = make()
    made = lowered(file, opset)
    assert exporters.opset_of(made) == opset and exporters.opset_of(file) == 18
    onnx.checker.check_model(made, full_check=True)
    for one, two in zip(run(made), run(file), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("file", "opset"),
    [
        (lambda: model("Resize", {"r": np.array([], np.float32), "s": np.ones(4, np.float32)}, antialias=1), 17),
        (lambda: model("Reshape", {"to": np.array([2, 120, 0])}, allowzero=1), 13),
    ],
)
def test_what_an_older_opset_cannot_say_is_refused(file: Callable[[], onnx.ModelProto], opset: int) -> None:
    with pytest.raises(ExportError, match=f"cannot be said in opset {opset}") as caught:
        lowered(file(), opset)
    assert "the_op" in str(caught.value)


@pytest.mark.parametrize("opset", [13, 16])
def test_where_the_old_exporter_fails_the_new_ones_file_is_restated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("gone from torch")

    monkeypatch.setattr(exporters, "_by_torchscript", broken)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.LayerNorm(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.hardswish(self.conv(x))
            one, two = self.norm(x.permute(0, 2, 3, 1)).chunk(2, -1)
            return one * two.mean((1, 2), keepdim=True)

    report = export_onnx(Net().eval(), tmp_path / "net.onnx", torch.rand(1, 3, 8, 8), opset=opset)
    assert report.opset == opset and report.worst < 1e-5
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "net.onnx")).graph.node}
    assert "LayerNormalization" not in kinds and ("HardSwish" in kinds) == (opset >= 14)


@pytest.mark.parametrize(("side", "left"), [(5, 0), (7, 1)])
def test_a_resize_to_the_size_that_is_there_is_taken_out(side: int, left: int) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Resize", ["a", "", "", "sizes"], ["b"], mode="linear"),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    file = helper.make_model(
        helper.make_graph(
            nodes,
            "three",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.array([2, 6, side, 4], np.int64), "sizes")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    made = identities.without_resizes(file)
    assert sum(node.op_type == "Resize" for node in made.graph.node) == left
    np.testing.assert_array_equal(run(made)[0], run(file)[0])


def test_constant_indices_become_32_bit_and_shapes_stay() -> None:
    nodes = [
        helper.make_node("Slice", ["x", "start", "stop", "axis"], ["cut"]),
        helper.make_node("Gather", ["cut", "place"], ["row"], axis=0),
        helper.make_node("Reshape", ["row", "shape"], ["y"]),
    ]
    constants = {"start": [1], "stop": [2**63 - 1], "axis": [2], "place": [1], "shape": [-1]}
    file = helper.make_model(
        helper.make_graph(
            nodes,
            "three",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    made = integers.narrowed(file)
    kinds = {item.name: item.data_type for item in made.graph.initializer}
    assert {name for name, kind in kinds.items() if kind == TensorProto.INT64} == {"shape"}
    np.testing.assert_array_equal(run(made)[0], run(file)[0])
