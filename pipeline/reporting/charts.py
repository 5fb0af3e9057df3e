"""Line charts as numbers that a template draws: scales, ticks, points with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 340, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 10, 58
"""Of the drawing and its margins, in SVG's own units."""


@dataclass(frozen=True)
class Point:
    """A place on a chart, the interval it lies in, what to say of it, and how large it is drawn."""

    x: float
    y: float
    low: float
    high: float
    title: str
    radius: float = 3.5


def chart(
    series: Mapping[str, Sequence[Point]],
    x_ticks: Sequence[tuple[float, str]],
    titles: tuple[str, str, str],
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> dict[str, Any]:
    """Return what a template needs to draw a chart: pixels of ticks and points.

    series: {name: points}; x_ticks: (place, label) each, the first and the last of which span the axis; titles: of
    the chart, the x axis, the y axis; y_range: by default as far as the intervals reach; diagonal: from corner to
    corner.
    """
    points = [point for line in series.values() for point in line]
    ticks = nice_ticks(*(y_range or (min(point.low for point in points), max(point.high for point in points))))
    first, last = x_ticks[0][0], x_ticks[-1][0]

    def across(x: float) -> float:
        share = (x - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(TOP + (ticks[-1] - y) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM), 1)

    return {
        "titles": titles,
        "size": (WIDTH, HEIGHT),
        "box": (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        "x_ticks": [(across(x), label) for x, label in x_ticks],
        "y_ticks": [(down(y), f"{y:.10g}") for y in ticks],
        "diagonal": diagonal,
        "series": [
            {
                "name": name,
                "points": [
                    (across(p.x), down(p.y), down(p.low), down(p.high), p.title, round(p.radius, 1)) for p in line
                ],
            }
            for name, line in series.items()
        ],
    }


def nice_ticks(low: float, high: float) -> list[float]:
    """Return 3 to 7 round numbers, evenly spaced, that enclose an interval."""
    span = max(high - low, 1e-3)
    unit = 10 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]
