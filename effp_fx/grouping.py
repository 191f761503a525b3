"""From an interpretation to channel groups: numbers the channels, names the groups, and writes down what each costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from effp_fx import graph, ops
from effp_fx.channel_ids import Owner, Reason
from effp_fx.groups import Analysis, ChannelGroup, Channels, Frozen, Graph, Slice, TensorDims, Term
from effp_fx.interpret import Interpretation, Shadows
from effp_fx.ops.context import Call
from effp_fx.ops.shadow import absolute, compress, crop, identity, map_ids, varying
from effp_fx.settle import Facets

_MIX = np.uint64(0x9E3779B97F4A7C15)
Hashes = npt.NDArray[np.uint64]


@dataclass
class _Numbering:
    """Which channel each id belongs to."""

    of_id: Channels
    count: int
    starts: list[int]
    """First channel of each group, and the total at the end."""


def build(work: Interpretation, parameters: set[str], bounds: Mapping[str, tuple[int, int]] | None = None) -> Analysis:
    """The analysis of all graphs walked so far.

    Args:
        work: the interpretation, settled here.
        parameters: the names that are parameters; the other weights are buffers.
        bounds: group name -> (smallest number kept, multiple of).
    """
    work.settle()
    numbering = _number(work)
    tensors = _tensors(work, numbering, parameters)
    groups = _groups(work, numbering, tensors, bounds or {})
    graphs = tuple(
        Graph.of(capture, _graph_dims(shadows, work.facets, numbering), repeated)
        for (capture, shadows), repeated in zip(work.graphs, work.repeats, strict=True)
    )
    flops, activations = _terms(graphs, work)
    notes = [*work.notes, *_notes(work)]
    return Analysis(
        numbering.count,
        groups,
        tensors,
        flops,
        activations,
        _frozen(work, numbering),
        _group_graph(groups, tensors),
        graphs,
        tuple(notes),
    )


def _number(work: Interpretation) -> _Numbering:
    """Channels with the same slices, and cut by the same ops, get consecutive numbers."""
    roots, frozen = work.ids.roots(), work.ids.frozen_mask()
    signature: Hashes = np.zeros(len(roots), dtype=np.uint64)
    random = np.random.default_rng(0)
    owned = np.zeros(len(roots), dtype=np.bool_)
    owners = work.ids.owners
    marks = random.integers(1, 2**63, len(owners), dtype=np.uint64)
    # Owners lie end to end from id 1 on: one sort finds how often each of them has each root.
    own = np.repeat(np.arange(len(owners)), [owner.stop - owner.start for owner in owners])
    keys, counts = np.unique(own * len(roots) + roots[1:], return_counts=True)
    np.add.at(signature, keys % len(roots), _mixed(marks[keys // len(roots)] + counts.astype(np.uint64) * _MIX))
    owned[roots[1:][np.array([bool(owner.tensor) for owner in owners], dtype=np.bool_)[own]]] = True
    for part in work.context.parts:
        mark = random.integers(1, 2**63, dtype=np.uint64)
        values = np.unique(roots[part[part > 0]])
        signature[values] += _mixed(np.full(len(values), mark, dtype=np.uint64))
    live = np.flatnonzero((roots == np.arange(len(roots))) & ~frozen & owned)
    first_of: dict[int, int] = {}
    order = [(first_of.setdefault(int(signature[root]), int(root)), int(root)) for root in live]
    order.sort()
    of_root = np.full(len(roots), -1, dtype=np.int64)
    of_root[[root for _, root in order]] = np.arange(len(order))
    starts = [0, *(index + 1 for index, (one, two) in enumerate(pairwise(order)) if one[0] != two[0]), len(order)]
    return _Numbering(of_root[roots], len(order), starts if order else [0])


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(31))) * _MIX
    return values ^ (values >> np.uint64(29))


def _tensors(work: Interpretation, numbering: _Numbering, parameters: set[str]) -> dict[str, TensorDims]:
    consumed = np.zeros(len(work.ids), dtype=np.bool_)
    for ids in work.context.consumed:
        consumed[ids] = True
    shown = np.zeros(len(work.ids), dtype=np.bool_)
    for ids in work.context.shown:
        shown[ids] = True
    silenced = np.zeros(len(work.ids), dtype=np.bool_)
    for ids in work.context.silenced:
        silenced[ids] = True
    result = {}
    for name, shape in work.shapes.items():
        dims: dict[int, Channels] = {}
        masked, reading = set(), set()
        for owner in work.owners[name]:
            channels = numbering.of_id[owner.start : owner.stop]
            if not (channels >= 0).any():
                continue
            dims[owner.dim] = channels
            own = slice(owner.start, owner.stop)
            if name not in work.context.statistics and (shown[own].any() or not consumed[own].any()):
                masked.add(owner.dim)
            elif silenced[own].any():
                reading.add(owner.dim)
        result[name] = TensorDims(shape, dims, name in parameters, frozenset(masked | reading), frozenset(reading))
    return result


def _role(work: Interpretation, name: str, dim: int, tensor: TensorDims) -> str:
    if name in work.context.statistics:
        return "stat"
    if dim not in tensor.masked or dim in tensor.reading:
        return "in"
    return "out" if len(tensor.shape) > 1 else "carry"


def _groups(
    work: Interpretation, numbering: _Numbering, tensors: dict[str, TensorDims], bounds: Mapping[str, tuple[int, int]]
) -> tuple[ChannelGroup, ...]:
    slices: dict[int, list[Slice]] = defaultdict(list)
    group_of = np.zeros(numbering.count, dtype=np.int64)
    for index, (start, stop) in enumerate(pairwise(numbering.starts)):
        group_of[start:stop] = index
    for name, tensor in tensors.items():
        for dim, channels in tensor.dims.items():
            role = _role(work, name, dim, tensor)
            live = channels[channels >= 0]
            for index in np.unique(group_of[live]).tolist():
                rows = int(np.count_nonzero(live == numbering.starts[index]))
                slices[index].append(Slice(name, dim, role, rows))
    names: Counter[str] = Counter()
    groups = []
    for index, (start, stop) in enumerate(pairwise(numbering.starts)):
        own = slices[index]
        layers = tuple(dict.fromkeys(_layer(part.tensor) for part in own if part.role == "out")) or (
            _layer(own[0].tensor),
        )
        names[layers[0]] += 1
        name = layers[0] if names[layers[0]] == 1 else f"{layers[0]}#{names[layers[0]]}"
        gammas = tuple(dict.fromkeys(part.tensor for part in own if part.tensor in work.context.gammas))
        groups.append(ChannelGroup(name, start, stop, tuple(own), gammas, layers, *bounds.get(name, (1, 1))))
    return tuple(groups)


def _layer(tensor: str) -> str:
    """The module that holds a weight; a parametrisation belongs to the module it parametrises."""
    path = tensor.rpartition(".")[0]
    return path.partition(".parametrizations.")[0] if ".parametrizations." in path else path or tensor


def _graph_dims(shadows: Shadows, facets: Facets, numbering: _Numbering) -> dict[fx.Node, list[dict[int, Channels]]]:
    channels = numbering.of_id[facets.ids]
    lines: dict[tuple[object, ...], tuple[int, Channels] | None] = {}
    for key, (dim, start, stop) in facets.lines.items():
        part = channels[start:stop]
        lines[key] = (dim, part) if (part >= 0).any() else None
    table = torch.from_numpy(numbering.of_id + 1)
    for key, (_, facet) in facets.wide.items():
        lines[key] = _line(absolute(compress(map_ids(facet, table))))
    return {
        node: [dict(line for facet in shadow.facets if (line := lines[identity(facet)])) for shadow in outputs]
        for node, outputs in shadows.items()
    }


def _line(facet: torch.Tensor) -> tuple[int, Channels] | None:
    along = varying(facet)
    if not along:
        return None
    if len(along) > 1:
        raise AssertionError("a value is not rectangular after settling")
    return along[0], crop(facet).reshape(-1).numpy().astype(np.int64) - 1


def _terms(graphs: tuple[Graph, ...], work: Interpretation) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Costs of the network as it is deployed: of the graph in eval mode, where there is one."""
    flops: list[Term] = []
    activations: list[Term] = []
    chosen = next((index for index, item in enumerate(graphs) if not item.capture.train), 0)
    if not graphs:
        return (), ()
    part, shadows = graphs[chosen], work.graphs[chosen][1]
    seen: set[int] = set()
    for node in part.capture.graph.nodes:
        if node.op != "call_function" or node not in shadows:
            continue
        layer = node.meta.get("module") or node.name
        row = ops.find(node)
        if row is not None and row.flops is not None:
            for constant, factors in row.flops(Call(node, shadows)):
                flops.append(_term(part, constant, factors, layer, node))
        for output, value in enumerate(graph.infos(node)):
            storage = node.meta["storage"]
            number = storage[output] if isinstance(storage, list) else storage
            if value is None or number in seen:
                continue
            seen.add(number)
            activations.append(_term(part, value.dtype.itemsize, _all_dims(node, value), layer, node, output))
    return tuple(flops), tuple(activations)


def _all_dims(node: fx.Node, value: graph.TensorInfo) -> tuple[tuple[fx.Node, int], ...]:
    return tuple((node, dim) for dim in range(len(value.shape)))


def _term(
    part: Graph, constant: float, factors: Iterable[tuple[fx.Node, int]], layer: str, node: fx.Node, output: int = 0
) -> Term:
    channels = []
    for source, dim in factors:
        value = graph.infos(source)[output if source is node else 0]
        known = part.dims.get(source, [{}])[output if source is node else 0].get(dim)
        if known is not None:
            channels.append(known)
        elif value is not None:
            constant *= value.shape[dim]
    return Term(constant, tuple(channels), layer, node.name)


def _frozen(work: Interpretation, numbering: _Numbering) -> tuple[Frozen, ...]:
    """Per weight of two or more dimensions: the channels it hands out that stay."""
    roots, reasons = work.ids.roots(), work.ids.frozen_roots()
    consumed = np.zeros(len(work.ids), dtype=np.bool_)
    for ids in work.context.consumed:
        consumed[ids] = True
    for ids in work.context.shown:
        consumed[ids] = False
    result = []
    for name, owners in work.owners.items():
        makers = [owner for owner in owners if owner.dim < 2 and not consumed[owner.start : owner.stop].any()]
        if len(work.shapes[name]) < 2 or not makers:
            continue
        owner = makers[0]
        stay = roots[owner.start : owner.stop][numbering.of_id[owner.start : owner.stop] < 0]
        if len(stay):
            reason = _first(reasons, stay, owner)
            result.append(Frozen(name, owner.dim, len(stay), reason.text, reason.op, reason.module, reason.source))
    return tuple(result)


def _first(reasons: dict[int, Reason], roots: npt.NDArray[np.int64], owner: Owner) -> Reason:
    found = Counter(reasons[root] for root in roots.tolist() if root in reasons)
    return found.most_common(1)[0][0] if found else Reason("belongs to no channel", module=owner.tensor)


def _group_graph(groups: tuple[ChannelGroup, ...], tensors: dict[str, TensorDims]) -> nx.DiGraph:
    """Which group feeds which: an edge for every layer that reads one and hands out the other."""
    feeds: nx.DiGraph = nx.DiGraph()
    for group in groups:
        feeds.add_node(group.name, channels=group.channels, frozen=False)
    readers, makers = _by_tensor(groups, "in"), _by_tensor(groups, "out")
    for tensor, sources in readers.items():
        targets = makers.get(tensor)
        if not targets:
            targets = [_layer(tensor)]
            feeds.add_node(targets[0], channels=tensors[tensor].shape[0], frozen=True)
        for source, target in product(sources, targets):
            if feeds.has_edge(source, target):
                feeds.edges[source, target]["layers"].append(_layer(tensor))
            else:
                feeds.add_edge(source, target, layers=[_layer(tensor)])
    return feeds


def _by_tensor(groups: tuple[ChannelGroup, ...], role: str) -> dict[str, list[str]]:
    """For each weight the groups that run through it in this role."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for group in groups:
        for part in group.slices:
            if part.role == role:
                found[part.tensor][group.name] = None
    return {tensor: list(names) for tensor, names in found.items()}


def _notes(work: Interpretation) -> list[str]:
    used = {name for capture, _ in work.graphs for name in capture.used}
    idle = [name for name in work.shapes if name not in used]
    notes = []
    if idle:
        shown = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
        notes.append(f"{len(idle)} weights did not run on the example inputs and stay as they are: {shown}")
    return notes
