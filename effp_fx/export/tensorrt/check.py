"""Checks an ONNX file against what one release of TensorRT is known to do with it. Nothing of NVIDIA's is run."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from effp_fx.export.tensorrt import channels, dla, network, rules, tables
from effp_fx.export.tensorrt.channels import ChannelCost
from effp_fx.export.tensorrt.dla import DlaSummary, Placement
from effp_fx.export.tensorrt.findings import Finding, Verdict, worst
from effp_fx.export.tensorrt.network import Network, Node
from effp_fx.export.tensorrt.tables import Accelerator, Target


@dataclass(frozen=True)
class CheckedNode:
    """One node and what is to be said of it."""

    name: str
    op: str
    macs: int
    findings: tuple[Finding, ...]
    placement: Placement
    """Where it runs in FP16 with the DLA switched on; the GPU on a target without one."""

    @property
    def verdict(self) -> Verdict:
        """The worst of its findings."""
        return worst([finding.verdict for finding in self.findings])


@dataclass(frozen=True)
class TensorRTReport:
    """What a target would do with a file, as far as its tables tell."""

    path: Path
    target: Target
    opset: int
    nodes: tuple[CheckedNode, ...]
    dla: dict[str, DlaSummary]
    """By precision, FP16 and INT8; empty on a target without a DLA."""
    channels: dict[str, ChannelCost]
    """What rounding channels up costs: FP16 and INT8 on tensor cores, DLA."""
    notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all nodes."""
        return worst([node.verdict for node in self.nodes])

    @property
    def builds(self) -> bool:
        """Whether no node is known to stop the build."""
        return all(finding.verdict.builds for node in self.nodes for finding in node.findings)

    @property
    def ok(self) -> bool:
        """Whether it is known neither to fail nor to be wrong."""
        return self.builds and self.verdict is not Verdict.WRONG

    @property
    def counts(self) -> dict[Verdict, int]:
        """Nodes of each verdict."""
        found = Counter(node.verdict for node in self.nodes)
        return {verdict: found[verdict] for verdict in Verdict}


def check_tensorrt(path: str | os.PathLike[str], target: str = "jetson-xavier-nx") -> TensorRTReport:
    """Say of each node of an ONNX file what the TensorRT of a target does with it, and where on the board it runs.

    The verdicts come from the operator tables and the source of NVIDIA's parser (onnx-tensorrt), the DLA's rules from
    NVIDIA's guide; each table names its source and date. TensorRT is not run, so a file that passes may still fail for
    reasons that no table holds.

    Args:
        path: the ONNX file; weights beside it are not read.
        target: "jetson-xavier-nx" (JetPack 5.1, TensorRT 8.5), "jetson-orin" (JetPack 6.0, TensorRT 8.6) or
            "tensorrt-10".

    Raises:
        ExportError: the target is not known.
        FileFormatError: the file is not ONNX.
    """
    aim = tables.target(target)
    read = network.read(path)
    engine = aim.accelerator
    places = {precision: _places(read, engine, precision) for precision in ("FP16", "INT8")}
    work = [channels.macs(node) for node in read.nodes]
    nodes = tuple(
        CheckedNode(node.name, node.op, count, tuple(rules.findings(node, aim.release)), place)
        for node, count, place in zip(read.nodes, work, places["FP16"], strict=True)
    )
    summaries = {}
    if engine is not None:
        summaries = {name: dla.summarise(read.nodes, spots, work, engine) for name, spots in places.items()}
    return TensorRTReport(
        Path(path), aim, read.opset, nodes, summaries, channels.costs(read.nodes), tuple(_notes(read, aim, summaries))
    )


def _places(read: Network, engine: Accelerator | None, precision: str) -> list[Placement]:
    return [dla.place(node, engine, precision) if engine else _on_gpu(node) for node in read.nodes]


def _on_gpu(node: Node) -> Placement:
    return Placement(dla.NOWHERE if node.folded else dla.GPU)


def _notes(read: Network, aim: Target, summaries: dict[str, DlaSummary]) -> list[str]:
    """What concerns the file as a whole."""
    notes = []
    low, high = aim.release.opsets
    if not low <= read.opset <= high:
        notes.append(
            f"opset {read.opset} is outside the {low} to {high} that TensorRT {aim.release.name} documents; its parser "
            "reads the file without a word, so trust the verdicts of the nodes, not the build"
        )
    wide = [name for name in (*read.inputs, *read.outputs) if read.value(name).dtype == "INT64"]
    if wide and not aim.release.native_int64:
        notes.append(f"INT64 becomes INT32 on the device: {', '.join(wide)}")
    free = [name for name in read.inputs if None in (read.value(name).shape or ())]
    if free:
        notes.append(f"free sizes need --minShapes, --optShapes and --maxShapes: {', '.join(free)}")
    crowded = [one for one in summaries.values() if one.loadables > one.most_loadables]
    if crowded:
        notes.append(f"{crowded[0].loadables} pieces on the DLA, a core holds {crowded[0].most_loadables}")
    return notes
