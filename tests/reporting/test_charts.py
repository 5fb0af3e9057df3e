"""charts: round ticks around the data, and places in the drawing."""

from __future__ import annotations

import pytest

from pipeline.reporting.charts import Point, Tick, Titles, lay_out, nice_ticks


@pytest.mark.parametrize(("low", "high"), [(0.977, 0.9965), (0.0, 1.0), (0.5, 0.5), (-3.2, 12.9)])
def test_ticks_are_few_and_enclose_the_interval(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 7


def test_points_are_placed_between_the_ends_of_the_axes() -> None:
    points = [Point(0, 0.0, 0.0, 0.0, "first"), Point(1, 0.5, 0.25, 1.0, "second")]
    chart = lay_out({"line": points}, [Tick(0, "0"), Tick(1, "1")], Titles("chart", "x", "y"))
    first, second = chart.lines[0].points
    assert (first.x, first.y) == (chart.left, chart.bottom) and (second.x, second.high) == (chart.right, chart.top)
    assert second.y == (chart.top + chart.bottom) / 2 and first.title == "first"
    assert [tick.place for tick in chart.x_ticks] == [chart.left, chart.right]
    assert [tick.label for tick in chart.y_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
