"""The group graph laid out in rows, from the input down, and drawn as SVG: our own layout, no other program needed."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import networkx as nx

_LETTER, _HEIGHT, _GAP, _ROW, _MARGIN = 7.0, 36.0, 18.0, 84.0, 24.0
_SWEEPS = 8


@dataclass(frozen=True)
class Box:
    """One group on the picture: its corner, its width, its row (0 on top), in pixels."""

    x: float
    y: float
    width: float
    row: int

    @property
    def centre(self) -> float:
        """Of its width."""
        return self.x + self.width / 2


def backward_edges(feeds: nx.DiGraph) -> set[tuple[str, str]]:
    """Edges that lead back to a group on the way here: residual groups feed layers that feed them. Without these the
    graph has no cycle."""
    # What nothing feeds comes first, so that edges are followed the way the data goes.
    ordered = nx.DiGraph()
    ordered.add_nodes_from(sorted(feeds, key=lambda node: feeds.in_degree(node) > 0))
    ordered.add_edges_from(feeds.edges)
    back: set[tuple[str, str]] = set()
    path: list[str] = []
    for one, two, kind in nx.dfs_labeled_edges(ordered):
        if kind == "forward":
            path.append(two)
        elif kind == "reverse":
            path.pop()
        elif two in path:
            back.add((one, two))
    return back


def layout(feeds: nx.DiGraph) -> dict[str, Box]:
    """A box for each group: rows are topological generations, order within a row is by what feeds it."""
    forward = nx.DiGraph(feeds)
    forward.remove_edges_from(backward_edges(feeds))
    rows = [list(generation) for generation in nx.topological_generations(forward)]
    for sweep in range(_SWEEPS):
        above = sweep % 2 == 0
        order = rows[1:] if above else rows[-2::-1]
        place = {node: index / max(1, len(row)) for row in rows for index, node in enumerate(row)}
        for row in order:
            near = {node: list(forward.predecessors(node) if above else forward.successors(node)) for node in row}
            weight = {node: fmean(place[other] for other in near[node]) if near[node] else place[node] for node in row}
            row.sort(key=lambda node: (weight[node], place[node]))
            place.update({node: index / max(1, len(row)) for index, node in enumerate(row)})
    widths = [sum(_width(feeds, node) + _GAP for node in row) - _GAP for row in rows]
    boxes = {}
    for number, row in enumerate(rows):
        x = _MARGIN + (max(widths) - widths[number]) / 2
        for node in row:
            boxes[node] = Box(x, _MARGIN + number * _ROW, _width(feeds, node), number)
            x += boxes[node].width + _GAP
    return boxes


def svg(feeds: nx.DiGraph, tips: dict[str, str] | None = None) -> str:
    """The picture as an SVG document of its own; pointing at a group shows its tip.

    Args:
        feeds: the group graph: nodes with `channels` and `frozen`, edges with `layers`.
        tips: more to say of a group, by its name.
    """
    boxes = layout(feeds)
    width = max((box.x + box.width for box in boxes.values()), default=0.0) + _MARGIN
    height = max((box.y + _HEIGHT for box in boxes.values()), default=0.0) + _MARGIN
    back = backward_edges(feeds)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="12">',
        "<title>which channel group feeds which layer</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    parts += [
        _edge(boxes[one], boxes[two], data["layers"], (one, two) in back) for one, two, data in feeds.edges(data=True)
    ]
    parts += [_node(name, boxes[name], data, (tips or {}).get(name, "")) for name, data in feeds.nodes(data=True)]
    return "\n".join([*parts, "</svg>", ""])


def dot(feeds: nx.DiGraph) -> str:
    """The graph in the language of graphviz, for those who want another layout."""
    lines = ["digraph groups {", '  node [shape=box, style="rounded,filled", fontname="sans-serif"];']
    for name, data in feeds.nodes(data=True):
        colour = "#eeeeee" if data["frozen"] else "#d8e8f8"
        label = _dot_text(f"{name}\n{_size(data)}")
        lines.append(f"  {_dot_text(name)} [label={label}, fillcolor={_dot_text(colour)}];")
    for one, two, data in feeds.edges(data=True):
        lines.append(f"  {_dot_text(one)} -> {_dot_text(two)} [tooltip={_dot_text(', '.join(data['layers']))}];")
    return "\n".join([*lines, "}", ""])


def _width(feeds: nx.DiGraph, node: str) -> float:
    return _LETTER * max(len(node), len(_size(feeds.nodes[node]))) + 16


def _size(data: dict[str, object]) -> str:
    return f"{data['channels']} frozen" if data["frozen"] else f"{data['channels']} channels"


def _node(name: str, box: Box, data: dict[str, object], tip: str) -> str:
    fill, edge = ("#eeeeee", "#999999") if data["frozen"] else ("#d8e8f8", "#3a6ea5")
    return (
        f'<g class="group" data-name="{html.escape(name)}"><title>{html.escape(f"{name}: {_size(data)}" + tip)}</title>'
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{_HEIGHT}" rx="5" '
        f'fill="{fill}" stroke="{edge}"/>'
        f'<text x="{box.centre:.1f}" y="{box.y + 15:.1f}" text-anchor="middle">{html.escape(name)}</text>'
        f'<text x="{box.centre:.1f}" y="{box.y + 29:.1f}" text-anchor="middle" fill="#555555">{_size(data)}</text></g>'
    )


def _edge(one: Box, two: Box, layers: Iterable[str], backward: bool) -> str:
    start, end = one.y + _HEIGHT, two.y
    if backward:
        # Up along the right-hand side, so that it is not taken for a way down.
        side = max(one.x + one.width, two.x + two.width) + 30
        top, low = two.y + _HEIGHT / 2, one.y + _HEIGHT / 2
        ends = [(one.x + one.width, low), (side, low), (side, top), (two.x + two.width, top)]
    else:
        middle = (start + end) / 2
        ends = [(one.centre, start), (one.centre, middle), (two.centre, middle), (two.centre, end)]
    first, *rest = [f"{x:.1f},{y:.1f}" for x, y in ends]
    path = f"M{first} C{' '.join(rest)}"
    dashes = ' stroke-dasharray="4 3"' if backward else ""
    title = html.escape("through " + ", ".join(layers))
    return f'<path d="{path}" fill="none" stroke="#7a7a7a" stroke-opacity="0.55"{dashes}><title>{title}</title></path>'


def _dot_text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def readers(feeds: nx.DiGraph) -> dict[str, list[str]]:
    """Group -> the layers that read it, in the order of the edges."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for one, _, data in feeds.edges(data=True):
        found[one] += [layer for layer in data["layers"] if layer not in found[one]]
    return dict(found)
