"""The README.md of a bundle: for the person at the board, with the numbers of this very model."""

from __future__ import annotations

from importlib import resources
from string import Template
from typing import Any

from effp_fx.export.tensorrt import TensorRTReport

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def readme(manifest: dict[str, Any], checked: TensorRTReport, line: str, samples: int) -> bytes:
    """The page.

    Args:
        manifest: of the bundle, without its files.
        checked: of the bundle's ONNX file.
        line: what build.sh runs.
        samples: pictures in samples.npz.
    """
    model, aim = manifest["model"], manifest["target"]
    values = {
        **{key: aim[key] for key in ("board", "software", "tensorrt")},
        **{key: model[key] for key in ("name", "part", "opset", "nodes")},
        "size": f"{_amount(model['bytes'])}B",
        "flops": _amount(model["flops"]),
        "params": _amount(model["params"]),
        "pruning": _pruning(manifest["plan"]),
        "inputs": "\n".join(_input(item) for item in manifest["inputs"]),
        "outputs": "\n".join(_output(item) for item in manifest["outputs"]),
        "decoding": _decoding(manifest),
        "verdict": _verdict(checked),
        "dla": _dla(checked),
        "dla_advice": _dla_advice(checked),
        "anywhere": _anywhere(manifest["decoding"]),
        "line": line,
        "samples": samples,
        "expected": _expected(manifest["errors"]),
        "fp32": f"{manifest['tolerances']['fp32']['relative']:.0e}",
        "fp16": f"{manifest['tolerances']['fp16']['relative']:.0e}",
        "calibration": _calibration(manifest["calibration"]),
        "int8": _odd(checked, "INT8"),
    }
    text = resources.files(__package__).joinpath("board", "README.md.in").read_text(encoding="utf-8")
    return Template(text).substitute(values).encode()


def _amount(value: float) -> str:
    for factor, letter in _UNITS:
        if value >= factor:
            return f"{value / factor:.2f} {letter}"
    return f"{value:.0f} "


def _pruning(plan: dict[str, Any] | None) -> str:
    if plan is None:
        return "none: the dense network"
    parts = []
    for key in ("flops", "params"):
        before, after = plan.get(f"{key}_before"), plan.get(f"{key}_after")
        if before and after:
            what = "FLOPs" if key == "flops" else "parameters"
            parts.append(f"{after / before:.1%} of the {what} of the dense network")
    return ", ".join(parts) or "pruned by effp_fx"


def _input(item: dict[str, Any]) -> str:
    shape = " x ".join(map(str, item["shape"]))
    how = item["preprocess"]
    if how is None:
        return f"| input | `{item['name']}`, {item['dtype']}, {shape} |"
    fit = "stretched to" if how["resize"] == "stretch" else f"whole ({how['align']}, rest {how['pad_value']}) in"
    mean, std = ([round(value, 4) for value in how[key]] for key in ("mean", "std"))
    prepared = f"{how['color']}, {fit} {how['width']} x {how['height']}, (pixel * {how['scale']:.6g} - {mean}) / {std}"
    return f"| input | `{item['name']}`, {item['dtype']}, {item['layout']} {shape}: {prepared} |"


def _output(item: dict[str, Any]) -> str:
    return f"| output | `{item['name']}`, {item['dtype']}, {' x '.join(map(str, item['shape']))}: {item['meaning']} |"


def _decoding(manifest: dict[str, Any]) -> str:
    found = manifest["decoding"]
    if found is None:
        return "none: these are raw heads, to be decoded by whoever knows the model"
    unit = "parts of the input's size" if found["normalised"] else "pixels of the input"
    where = "inside the file" if found["suppression"] else "by run.py"
    overlap = found["iou_threshold"]
    kept = f"suppressed above {overlap} overlap {where}" if overlap is not None else "nothing suppressed"
    names = ", ".join(item["name"] for item in manifest["classes"][:4])
    more = f" ... ({len(manifest['classes'])} classes)" if len(manifest["classes"]) > 4 else ""
    return (
        f"boxes {found['box_format']} in {unit}; score above {found['score_threshold']}, {kept}, "
        f"at most {found['max_detections']}; {names}{more}"
    )


def _anywhere(decoding: dict[str, Any] | None) -> str:
    if decoding is not None and decoding["suppression"] == "EfficientNMS_TRT":
        return (
            "This file holds TensorRT's plugin EfficientNMS_TRT, which ONNX Runtime lacks: what follows works with\n"
            "a folder that was made with part='decoded'."
        )
    return "The same scripts run with ONNX Runtime:"


def _verdict(checked: TensorRTReport) -> str:
    counts = ", ".join(f"{count} nodes {verdict}" for verdict, count in checked.counts.items() if count)
    release = checked.target.release
    reasons = {finding.why for node in checked.nodes for finding in node.findings}
    why = f" ({'; '.join(sorted(reasons))})" if reasons else ""
    return f"{counts}{why}; from the tables of its parser of {release.date}, it was not run"


def _dla(checked: TensorRTReport) -> str:
    if not checked.dla:
        return "none on this target"
    return "; ".join(
        f"{name}: {one.macs_share:.1%} of the work in {one.loadables} pieces, {one.switches} changes to or from the GPU"
        for name, one in sorted(checked.dla.items())
    )


def _dla_advice(checked: TensorRTReport) -> str:
    if not checked.dla:
        return "This target has none."
    reasons: dict[str, int] = {}
    for node in checked.nodes:
        if node.placement.device == "GPU" and node.placement.why:
            reasons[node.placement.why] = reasons.get(node.placement.why, 0) + 1
    first = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:3]
    why = "; ".join(f"{count} nodes: {reason}" for reason, count in first)
    if not first:
        return "All of it fits."
    return f"Not on it: {why}. Each change between DLA and GPU costs time, so measure both."


def _odd(checked: TensorRTReport, name: str) -> str:
    cost = checked.channels[name]
    return f"here {len(cost.odd)} of {cost.layers} convolutions; padding them adds {cost.extra:.1%} of work"


def _expected(errors: dict[str, Any]) -> str:
    lines = ["| output | ONNX Runtime from PyTorch, relative |", "|---|---|"]
    lines += [f"| {name} | {entry['relative']:.1e} |" for name, entry in sorted(errors.items())]
    return "\n".join(lines)


def _calibration(packed: dict[str, Any] | None) -> str:
    if packed is None:
        return (
            "No pictures were packed. Bring some hundred of what the camera will see:\n\n"
            "    python3 calibration/calibrate.py --images FOLDER"
        )
    return f"{packed['pictures']} pictures were packed to measure ranges on:\n\n    python3 calibration/calibrate.py"
