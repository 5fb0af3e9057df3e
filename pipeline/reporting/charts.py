"""Line charts as numbers that a template draws: the places of ticks and of points with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 10, 58
"""Size of the drawing and of its margins, in SVG's user units."""


@dataclass(frozen=True)
class Point:
    """A point with its interval, in the units of the data or of the drawing; title: text that hovering shows."""

    x: float
    y: float
    low: float
    high: float
    title: str
    radius: float = 3.5


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in the units of the data or of the drawing, and its label."""

    place: float
    label: str


@dataclass(frozen=True)
class Titles:
    """The texts of a chart: above it, below its x axis and beside its y axis."""

    chart: str
    x: str
    y: str


@dataclass(frozen=True)
class Line:
    """The points of a line, and its name in the legend."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class Chart:
    """A chart in the units of the drawing; left, top, right, bottom: edges of the area where the lines are.

    diagonal: whether a line from corner to corner is drawn, and the points are not joined.
    """

    titles: Titles
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    diagonal: bool
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    top: int = TOP
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class _Scale:
    """Maps the interval of the data from first to last to the drawing's from start to end."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value; the middle, where the interval is a single value."""
        share = (value - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def lay_out(
    lines: Mapping[str, Sequence[Point]],
    x_ticks: Sequence[Tick],
    titles: Titles,
    *,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> Chart:
    """Return a chart of points in the units of the data.

    lines: {name: points}; x_ticks: the first and the last are the ends of the x axis; y_range: of the y axis, by
    default from the lowest to the highest end of an interval.
    """
    points = [point for line in lines.values() for point in line]
    y_ticks = nice_ticks(*(y_range or (min(point.low for point in points), max(point.high for point in points))))
    across = _Scale(x_ticks[0].place, x_ticks[-1].place, LEFT, WIDTH - RIGHT)
    down = _Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)

    def place(p: Point) -> Point:
        return Point(across(p.x), down(p.y), down(p.low), down(p.high), p.title, round(p.radius, 1))

    return Chart(
        titles,
        [Tick(across(tick.place), tick.label) for tick in x_ticks],
        [Tick(down(y), f"{y:.10g}") for y in y_ticks],
        [Line(name, [place(point) for point in line]) for name, line in lines.items()],
        diagonal,
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Return 3 to 7 round numbers, evenly spaced, that enclose an interval."""
    span = max(high - low, 1e-3)
    unit = 10 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]
