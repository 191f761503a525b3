"""A scatter chart as SVG text: named points with a spread, axes that begin where the points do."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f")
_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 130, 34, 46
_TICKS = 5
_LINE = 12
"""Pixels between two names."""


@dataclass(frozen=True)
class Point:
    """One point, with its spread upwards and downwards."""

    name: str
    x: float
    y: float
    spread: float = 0.0


def scatter_chart(title: str, points: Sequence[Point], *, across: str, up: str) -> str:
    """Each point with its name beside it.

    Args:
        title: above it.
        points: those with numbers that are not finite are left out.
        across: what x is.
        up: what y is.
    """
    shown = [point for point in points if all(map(math.isfinite, (point.x, point.y, point.spread)))]
    xs = _range([point.x for point in shown])
    ys = _range([value for point in shown for value in (point.y - point.spread, point.y + point.spread)])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="11" role="img"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="13" font-weight="bold">{html.escape(title)}</text>',
        *_axes(xs, ys, across, up),
        *_points(shown, xs, ys),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the largest, with a tenth on either side; never empty."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.1 * (high - low) or 0.1 * abs(high) or 0.5
    return low - margin, high + margin


def _across(x: float, xs: tuple[float, float]) -> float:
    return _LEFT + (x - xs[0]) / (xs[1] - xs[0]) * (_WIDTH - _LEFT - _RIGHT)


def _up(y: float, ys: tuple[float, float]) -> float:
    return _HEIGHT - _BOTTOM - (y - ys[0]) / (ys[1] - ys[0]) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(xs: tuple[float, float], ys: tuple[float, float], across: str, up: str) -> list[str]:
    found = []
    for index in range(_TICKS):
        part = index / (_TICKS - 1)
        x, y = (low + part * (high - low) for low, high in (xs, ys))
        left, height = _across(x, xs), _up(y, ys)
        found.append(f'<path d="M{_LEFT} {height:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd" fill="none"/>')
        found.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:.4g}</text>')
        found.append(f'<text x="{left:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{x:.4g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    found.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{html.escape(across)}</text>')
    return [*found, f'<text x="6" y="{_TOP - 4}">{html.escape(up)}</text>']


def _points(points: Sequence[Point], xs: tuple[float, float], ys: tuple[float, float]) -> list[str]:
    """The points from above to below; a name moves down where the one above it is in its way."""
    found, last = [], -math.inf
    for index, point in enumerate(sorted(points, key=lambda point: -point.y)):
        x, y = _across(point.x, xs), _up(point.y, ys)
        colour = _COLOURS[index % len(_COLOURS)]
        last = max(y + 4, last + _LINE)
        low, high = _up(point.y - point.spread, ys), _up(point.y + point.spread, ys)
        said = f"{point.name}: {point.y:.4g} at {point.x:.4g}"
        found.append(
            f'<g stroke="{colour}" fill="{colour}"><title>{html.escape(said)}</title>'
            f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" fill="none"/><circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/></g>'
            f'<path d="M{x + 5:.1f} {y:.1f}L{x + 9:.1f} {last - 4:.1f}" stroke="#aaa" fill="none"/>'
            f'<text x="{x + 11:.1f}" y="{last:.1f}" fill="{colour}">{html.escape(point.name)}</text>'
        )
    return found
