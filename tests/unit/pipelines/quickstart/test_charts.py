"""Charts hold what they are given, at the place it belongs, as well-formed SVG."""

import xml.etree.ElementTree as ET

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.quickstart.charts import Bar, Series, bar_chart, line_chart

numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 6))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
def test_every_point_lies_inside_the_frame_and_in_order(points: list[tuple[float, float]]) -> None:
    svg = ET.fromstring(line_chart([Series("a<b", *zip(*points, strict=True), dots=True)], "x", "y"))
    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in svg.iter("circle")]
    assert len(circles) == len(points)
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in circles)
    for (x, y), (cx, cy) in zip(points, circles, strict=True):
        for (other_x, other_y), (other_cx, other_cy) in zip(points, circles, strict=True):
            assert x <= other_x or cx >= other_cx
            assert y <= other_y or cy <= other_cy  # SVG's y axis points down.


def test_bars_are_as_high_as_their_values() -> None:
    svg = ET.fromstring(bar_chart([Bar("one", 1.0, 0.9, 1.1), Bar("two", 2.0)], "share", reference=0.5))
    one, two = (float(rect.get("height", "")) for rect in svg.iter("rect"))
    assert abs(two / one - 2) < 0.02
    labels = {text.text for text in svg.iter("text")}
    assert {"one", "two", "1", "2", "share"} <= labels


def test_nothing_logged_is_said() -> None:
    assert "nothing was logged" in line_chart([Series("loss", [], [])], "step", "loss")
