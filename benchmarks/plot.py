"""Charts of cost, as SVG text: two logarithmic axes, a line for each series, nothing to install."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

_WIDE, _HIGH, _LEFT, _TOP, _INNER_WIDE, _INNER_HIGH = 420, 300, 62, 34, 330, 214
_COLORS = ("#1f77b4", "#d1495b", "#2a9d5c", "#b8860b", "#6a4c93")


def chart(title: str, across: str, series: Mapping[str, Points]) -> str:
    """One chart.

    Args:
        title: above it; the axis upward is seconds.
        across: what the other axis is.
        series: {name: points of positive numbers, two or more in all}.

    Returns:
        An ``<svg>`` element of 420 x 300 pixels.
    """
    every = [point for points in series.values() for point in points]
    x_ticks, y_ticks = (_ticks([point[axis] for point in every]) for axis in (0, 1))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = (_share(value, ticks) for value, ticks in zip(point, (x_ticks, y_ticks), strict=True))
        return _LEFT + x * _INNER_WIDE, _TOP + (1 - y) * _INNER_HIGH

    parts = [_text(_WIDE / 2, 18, title, 13), _text(_LEFT + _INNER_WIDE / 2, _HIGH - 6, across, 11)]
    for tick in x_ticks:
        x = place((tick, y_ticks[0]))[0]
        parts += [_line(x, _TOP, x, _TOP + _INNER_HIGH), _text(x, _TOP + _INNER_HIGH + 15, f"{tick:g}", 10)]
    for tick in y_ticks:
        y = place((x_ticks[0], tick))[1]
        parts += [_line(_LEFT, y, _LEFT + _INNER_WIDE, y), _text(_LEFT - 26, y + 4, f"{tick:g} s", 10)]
    for index, (name, points) in enumerate(series.items()):
        color, places = _COLORS[index % len(_COLORS)], [place(point) for point in sorted(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
        parts.append(_text(_LEFT + 8, _TOP + 14 + 14 * index, name, 11, color, "start"))
    return f'<svg width="{_WIDE}" height="{_HIGH}">{"".join(parts)}</svg>'


def page(charts: Sequence[str]) -> str:
    """Charts side by side, two in a row, as one SVG picture."""
    placed = [f'<g transform="translate({i % 2 * _WIDE},{i // 2 * _HIGH})">{each}</g>' for i, each in enumerate(charts)]
    wide, high = min(len(charts), 2) * _WIDE, math.ceil(len(charts) / 2) * _HIGH
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(placed)}</svg>\n'
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten around positive values, at least two."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = sorted(factor * 10.0**power for power in range(low - 1, high + 1) for factor in (1, 2, 5))
    first = max(index for index, step in enumerate(steps) if step <= min(values) or index == 0)
    last = next((index for index, step in enumerate(steps) if step >= max(values)), len(steps) - 1)
    return steps[first : max(last, first + 1) + 1]


def _share(value: float, ticks: Sequence[float]) -> float:
    """Where a value is between the first and the last tick, 0 to 1, logarithmically."""
    return math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, size: int, color: str = "#333", anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{escape(text)}</text>'
    )
