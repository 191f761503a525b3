"""How much of a cut of FLOPs shows as time: dense and compact networks in turns, as a whole and layer by layer."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import nn

from effp_fx import api
from effp_fx.evaluate.latency import Call, interleaved, onnx_call, onnx_profile, torch_call
from effp_fx.export import export_onnx
from effp_fx.export.tensorrt import check_tensorrt
from effp_fx.inputs import Example, map_tensors
from effp_fx.report.ratio_report import LayerTime, RatioReport, RatioRow

DENSE = "dense"
Progress = Callable[[str], None]
_FUSED = ("Relu", "Clip", "LeakyRelu", "HardSigmoid", "Sigmoid", "Tanh", "Add")
"""What ONNX Runtime makes a part of the convolution before it."""


@dataclass(frozen=True)
class Network:
    """A network, its ONNX file up to the raw heads, and what that file computes."""

    name: str
    model: nn.Module
    file: Path
    flops: float


def exported(
    model: nn.Module,
    example: Example | None,
    folder: Path,
    *,
    target_flops: float,
    round_to: Sequence[int],
    progress: Progress = lambda _: None,
) -> list[Network]:
    """The dense network and one for each rounding, pruned to the target, as ONNX files in a folder.

    FLOPs are those of the ONNX file: 2 for each multiply-accumulate of its convolutions and matrix products.
    """
    networks: dict[str, nn.Module] = {DENSE: model}
    for multiple in round_to:
        progress(f"prune, round_to={multiple}")
        result = api.prune_reported(model, example, target_flops=target_flops, round_to=multiple)
        networks[f"round_to={multiple}"] = result.model
    found = []
    for number, (name, network) in enumerate(networks.items()):
        progress(f"export {name}")
        file = folder / f"{number}.onnx"
        export_onnx(network, file, example)
        macs = sum(node.macs for node in check_tensorrt(file).nodes)
        found.append(Network(name, network, file, 2.0 * macs))
    return found


def ratios(runtime: str, networks: Sequence[Network], calls: Sequence[Call], **options: Any) -> RatioReport:
    """Time the networks in turns; the first is what the others are compared with.

    Args:
        runtime: what they run in, for the report.
        networks: dense first.
        calls: one for each.
        options: rounds, warmup, most_seconds, as `interleaved` has them.
    """
    named = {network.name: call for network, call in zip(networks, calls, strict=True)}
    found = interleaved(named, **options)
    rows = [
        RatioRow(network.name, network.flops, latency.median, latency.quartiles, len(latency.seconds))
        for network, latency in zip(networks, found, strict=True)
    ]
    return RatioReport(runtime, tuple(rows))


def measure(
    model: nn.Module,
    example: Example | None,
    inputs: Example,
    *,
    target_flops: float,
    round_to: Sequence[int],
    threads: int = 0,
    rounds: int = 20,
    compiled: bool = False,
    layers: bool = False,
    progress: Progress = lambda _: None,
) -> list[RatioReport]:
    """ONNX Runtime on the CPU, then where asked `torch.compile`, and a GPU where there is one.

    Args:
        model: dense; untouched.
        example: inputs for the export; None: the family's own.
        inputs: what `torch.compile` and the GPU run on.
        target_flops: what is kept.
        round_to: one network for each.
        threads: of ONNX Runtime; 0: as many as there are cores.
        rounds: as many times as each is run.
        compiled: time `torch.compile` as well.
        layers: time the layers of the networks in ONNX Runtime as well.
        progress: told each step.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        networks = exported(model, example, folder, target_flops=target_flops, round_to=round_to, progress=progress)
        progress("run in ONNX Runtime")
        calls = [onnx_call(network.file, threads=threads) for network in networks]
        runtime = "ONNX Runtime" + (f", {threads} threads" if threads else "")
        first = ratios(runtime, networks, calls, rounds=rounds)
        if layers:
            progress("time the layers in ONNX Runtime")
            first = first.with_layers(layer_times(networks, folder, threads, rounds))
    reports = [first]
    if compiled:
        progress("run with torch.compile")
        calls = [torch_call(_compiled(network.model), inputs) for network in networks]
        reports.append(ratios("torch.compile", networks, calls, rounds=rounds))
    if torch.cuda.is_available():
        progress("run on the GPU")
        there: Example = map_tensors(lambda tensor: tensor.cuda(), inputs)
        calls = [torch_call(network.model.cuda(), there) for network in networks]
        reports.append(ratios(torch.cuda.get_device_name(), networks, calls, rounds=rounds))
    return reports


def layer_times(networks: Sequence[Network], folder: Path, threads: int, rounds: int) -> tuple[LayerTime, ...]:
    """Median seconds of each op of ONNX Runtime, by its name, in each network; the slowest of the dense one first."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    kinds: dict[str, str] = {}
    for network in networks:
        for name, (kind, seconds) in profiled(network.file, folder, threads, rounds).items():
            found[name][network.name] = seconds
            kinds[name] = kind
    first = networks[0].name
    times = [LayerTime(name, kinds[name], seconds) for name, seconds in found.items()]
    return tuple(sorted(times, key=lambda time: -time.seconds.get(first, 0.0)))


def profiled(file: str | os.PathLike[str], folder: Path, threads: int, rounds: int) -> dict[str, tuple[str, float]]:
    """Op type and median seconds of each op of an ONNX file, by ONNX Runtime's own profiler.

    Convolutions have the names of the file's nodes, which are those of the layers, whatever ONNX Runtime makes of them;
    what it fuses has names of its own.
    """
    events = onnx_profile(file, folder, runs=rounds + 2, threads=threads)
    named = _blocked(file)
    taken: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name = event["name"].removesuffix("_kernel_time")
        name = named.get(name, name)
        taken[name].append(1e-6 * event["dur"])
        kinds[name] = event["args"]["op_name"]
    return {name: (kinds[name], statistics.median(seconds)) for name, seconds in taken.items()}


def _blocked(file: str | os.PathLike[str]) -> dict[str, str]:
    """The names that ONNX Runtime gives to convolutions that it puts into blocks of channels -> those of the file.

    Such a one is called after what it hands out, which is what the activation or sum hands out that became part of it.
    """
    nodes = onnx.load(file, load_external_data=False).graph.node
    makers = {output: node for node in nodes for output in node.output}
    found = {}
    for output, node in makers.items():
        while node.op_type in _FUSED:
            before = [makers[name] for name in node.input if name in makers]
            if not before:
                break
            node = next((one for one in before if one.op_type == "Conv"), before[0])
        found[f"{output}_nchwc"] = node.name
    return found


def _compiled(model: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(model))  # torch says Callable; it is a module where it was given one
