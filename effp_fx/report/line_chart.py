"""A line chart as SVG text: a few lines of our own in place of a plotting library and its hundred megabytes."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]

_COLOURS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e"),
    *("#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"),
)
_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 30, 40
_NAMED = 10
"""Lines that get a name beside the chart; with more, a name shows when the mouse is over its line."""


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    across: str,
    levels: Mapping[str, float] | None = None,
    steps: bool = False,
) -> str:
    """One line a name, from 0 up.

    Args:
        title: above it.
        lines: name -> points (x, y); numbers that are not finite are left out.
        across: what x is.
        levels: name -> y of a dashed line right across, such as a target.
        steps: each y holds until the next x.
    """
    shown = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in lines.items()}
    shown = {name: points for name, points in shown.items() if points}
    every = [point for points in shown.values() for point in points]
    top = _nice(max([y for _, y in every] + list((levels or {}).values()), default=1.0))
    last = max((x for x, _ in every), default=1.0) or 1.0
    named = len(shown) <= _NAMED
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_height(shown)}" font-family="sans-serif" '
        f'font-size="11" role="img"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" font-size="13" font-weight="bold">{html.escape(title)}</text>',
        *_axes(last, top, across),
        *(_level(name, value / top) for name, value in (levels or {}).items()),
        *(_line(name, points, last, top, index, steps) for index, (name, points) in enumerate(shown.items())),
        *(_name(name, index) for index, name in enumerate(shown) if named),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _height(shown: Mapping[str, Points]) -> int:
    rows = math.ceil(len(shown) / 2) if len(shown) <= _NAMED else 0
    return _HEIGHT + 16 * rows


def _nice(value: float) -> float:
    """The next of 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _place(x: float, y: float) -> tuple[float, float]:
    """Pixels from parts of the axes."""
    return _LEFT + x * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM)


def _axes(last: float, top: float, across: str) -> list[str]:
    found = []
    for quarter in range(5):
        left, height = _place(0, quarter / 4)
        right, _ = _place(1, 0)
        found.append(f'<path d="M{left:.1f} {height:.1f}H{right:.1f}" stroke="#ddd" fill="none"/>')
        found.append(f'<text x="{left - 6:.1f}" y="{height + 4:.1f}" text-anchor="end">{top * quarter / 4:.4g}</text>')
        x, bottom = _place(quarter / 4, 0)
        found.append(f'<text x="{x:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{last * quarter / 4:.4g}</text>')
    x, bottom = _place(0.5, 0)
    return [*found, f'<text x="{x:.1f}" y="{bottom + 30:.1f}" text-anchor="middle">{html.escape(across)}</text>']


def _level(name: str, part: float) -> str:
    left, height = _place(0, part)
    right, _ = _place(1, 0)
    return (
        f'<path d="M{left:.1f} {height:.1f}H{right:.1f}" stroke="#555" stroke-dasharray="5 4" fill="none"/>'
        f'<text x="{right:.1f}" y="{height - 4:.1f}" text-anchor="end" fill="#555">{html.escape(name)}</text>'
    )


def _line(name: str, points: Points, last: float, top: float, index: int, steps: bool) -> str:
    places = [_place(x / last, y / top) for x, y in points]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for x, y in places[1:]:
        path += f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}"
    x, y = places[-1]
    colour = _COLOURS[index % len(_COLOURS)]
    return (
        f'<g stroke="{colour}" fill="{colour}"><title>{html.escape(name)}: {points[-1][1]:.4g}</title>'
        f'<path d="{path}" fill="none" stroke-width="1.5"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2"/></g>'
    )


def _name(name: str, index: int) -> str:
    x = _LEFT + (index % 2) * (_WIDTH - _LEFT) / 2
    y = _HEIGHT + 4 + 16 * (index // 2)
    return (
        f'<path d="M{x:.1f} {y - 4}h16" stroke="{_COLOURS[index % len(_COLOURS)]}" stroke-width="2"/>'
        f'<text x="{x + 22:.1f}" y="{y}">{html.escape(name)}</text>'
    )
