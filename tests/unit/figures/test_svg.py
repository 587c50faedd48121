from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.app.figures.svg import Drawing, Scale, padded, ticks


@given(
    low=st.floats(-1e6, 1e6),
    span=st.floats(1e-4, 1e6),
    count=st.integers(1, 20),
)
def test_ticks_are_few_even_and_inside(low: float, span: float, count: int) -> None:
    high = low + span
    found = ticks(low, high, count)
    assert len(found) <= count + 1
    slack = span * 1e-6 + 1e-9
    assert all(low - slack <= value <= high + slack for value in found)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps) if gaps else [], rel=1e-3)


def test_an_empty_range_has_one_tick_and_a_margin() -> None:
    assert ticks(2.0, 2.0) == [2.0]
    assert padded([0.0]) == (-1.0, 1.0)
    low, high = padded([5.0, 5.0])
    assert low < 5.0 < high
    assert Scale(1.0, 1.0, 10.0, 20.0)(1.0) == 10.0


def test_a_drawing_is_xml_with_its_words_escaped() -> None:
    drawing = Drawing("one", "a < b", "c & d", 100)
    drawing.text(1, 2, "<tspan>", "label")
    drawing.circle(3, 4, 5, "dot", 'tip "quoted" <x>')
    drawing.rect(0, 0, width=-1, height=3, css="bar")
    drawing.path([(0, 0), (1.239, 2)], "series")
    root = ET.fromstring(drawing.render())
    assert root.findtext("text") == "<tspan>"
    assert root.findtext("circle/title") == 'tip "quoted" <x>'
    assert root.find("rect").get("width") == "0"  # type: ignore[union-attr]
    assert root.find("polyline").get("points") == "0,0 1.24,2"  # type: ignore[union-attr]


def test_a_number_that_is_none_crashes_the_drawing() -> None:
    with pytest.raises(AssertionError):
        Drawing("one", "t", "d", 10).line(0, float("nan"), 1, 1, "grid")
