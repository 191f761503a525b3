"""What a release of TensorRT does with a node: its op, the type of its data, its form, or the plugin that it names."""

from __future__ import annotations

from collections.abc import Iterator

from effp_fx.export.tensorrt.features import features
from effp_fx.export.tensorrt.findings import Finding, Verdict
from effp_fx.export.tensorrt.network import STANDARD, Node
from effp_fx.export.tensorrt.tables import Release

_TYPES = {
    "FLOAT": "FP32",
    "DOUBLE": "FP32",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "FLOAT8E4M3FN": "FP8",
    "BOOL": "BOOL",
    "INT8": "INT8",
    "UINT8": "UINT8",
    "INT32": "INT32",
    "INT64": "INT64",
}
_ANY_TYPE = {"Cast", "Constant", "ConstantOfShape", "If", "Loop", "Scan", "Shape", "Size", "Range", "OneHot"}
"""Ops whose first input says nothing about the type that they compute in."""
_DATA = {"Where": 1}
"""Where the data stands, if not first."""
_INSTEAD = {
    "LayerNormalization": "export at opset 16, where it is written as its steps",
    "GroupNormalization": "export at opset 17, where it is written as its steps",
    "Mish": "export at opset 17, where it is written as its steps",
    "Gelu": "export at opset 17, where it is written as its steps",
}


def findings(node: Node, release: Release) -> Iterator[Finding]:
    """What is to be said of a node; nothing where the release takes it as it is."""
    if node.domain not in STANDARD:
        yield from _plugin(node, release)
        return
    if node.op in release.plugins:
        why = "ONNX itself has no such op, so the checker refuses the file"
        yield Finding("plugin", Verdict.RESTRICTED, why, 'give the node a domain of its own, such as "TRT"')
        yield from _plugin(node, release)
        return
    if not release.types.get(node.op):
        yield Finding("missing", Verdict.MISSING, f"TensorRT {release.name} has no {node.op}", _INSTEAD.get(node.op))
        return
    yield from _type(node, release)
    if node.op in release.unchecked:
        why = "the operator table restricts this op in a way that is not checked here"
        yield Finding("unchecked", Verdict.RESTRICTED, why)
    for name in features(node, release.limits):
        found = release.features[name]
        if found.verdict is not Verdict.SUPPORTED:
            yield found


def _type(node: Node, release: Release) -> Iterator[Finding]:
    position = _DATA.get(node.op, 0)
    given = node.dtype(position)
    if node.op in _ANY_TYPE or node.folded or given is None:
        return
    wanted = _TYPES.get(given, given)
    if wanted == "INT64" and not release.native_int64:
        wanted = "INT32"
    taken = release.types[node.op]
    if wanted not in taken:
        why = f"{node.op} is computed in {', '.join(taken)}, not in {wanted}"
        yield Finding("type", Verdict.REFUSED, why, f"cast to FP32 before it, and back to {given} after it")


def _plugin(node: Node, release: Release) -> Iterator[Finding]:
    known = release.plugins.get(node.op)
    if known is None:
        why = f"{node.op} of domain {node.domain!r} is no op of ONNX and no plugin known to TensorRT {release.name}"
        yield Finding("plugin", Verdict.MISSING, why, "load a plugin library of this name into trtexec with --plugins=")
        return
    yield Finding("plugin", Verdict.RESTRICTED, known["why"])
    version = str(node.attributes.get("plugin_version", known["version"]))
    if version != known["version"]:
        why = f"plugin_version is {version}, there is {known['version']}"
        yield Finding("plugin-version", Verdict.REFUSED, why)
    absent = [name for name in known["required"] if name not in node.attributes]
    if absent:
        why = f"without {', '.join(absent)} the plugin is not created or takes its own default"
        yield Finding("plugin-attribute", Verdict.REFUSED, why, "write every attribute out")
    foreign = [name for name in node.attributes if name not in (*known["required"], *known["optional"])]
    if foreign:
        why = f"the plugin has no attribute {', '.join(foreign)}: it is not read"
        yield Finding("plugin-attribute", Verdict.WRONG, why, "remove it, or write the one that is meant")
    if len(node.inputs) not in known["inputs"]:
        why = f"it has {len(node.inputs)} inputs, the plugin takes {' or '.join(map(str, known['inputs']))}"
        yield Finding("plugin-inputs", Verdict.REFUSED, why)
    if float(node.attributes.get("score_threshold", 1.0)) < 0.01:
        why = "score_threshold below 0.01: nearly every score is sorted, which is slow"
        yield Finding("plugin-threshold", Verdict.RESTRICTED, why, "score_threshold=0.01 or more")
