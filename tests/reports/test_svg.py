import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as some

from polyalign.reports import svg

numbers = some.floats(allow_nan=True, allow_infinity=True, width=32)


@given(some.lists(some.tuples(numbers, numbers), max_size=60))
def test_curves_are_well_formed_whatever_the_values(points):
    drawn = svg.curves([svg.Curve("a <b> & 'c'", points)])
    if drawn:
        assert "nan" not in drawn
        assert "inf" not in drawn
        ET.fromstring(drawn)
    else:
        assert not any(math.isfinite(x) and math.isfinite(y) for x, y in points)


def test_a_curve_tells_its_values_on_hover():
    drawn = svg.curves([svg.Curve("loss", [(1, 0.5), (2, 0.25)])])
    assert "<title>loss, step 2: 0.25</title>" in drawn


def test_a_noisy_curve_is_drawn_faint_under_its_average_and_a_schedule_is_not():
    noisy = [(float(i), float(i % 2)) for i in range(100)]
    smooth = [(float(i), i / 100) for i in range(100)]
    assert "faint" in svg.curves([svg.Curve("x", noisy)])
    assert "faint" not in svg.curves([svg.Curve("x", smooth)])


def test_the_average_of_a_constant_is_the_constant():
    assert {y for _, y in svg.average([(float(i), 2.0) for i in range(50)])} == {2.0}


def test_a_long_run_is_thinned_but_ends_where_it_ends():
    points = [(float(i), float(i)) for i in range(100_000)]
    few = svg.thin(points)
    assert len(few) <= 241
    assert few[-1] == points[-1]
    assert len(svg.curves([svg.Curve("x", points)])) < 30_000


def test_one_outlier_does_not_flatten_the_rest():
    points = [(float(i), math.sin(i)) for i in range(99)] + [(99.0, 1e9)]
    drawn = svg.curves([svg.Curve("x", points)])
    ticks = [t.text for t in ET.fromstring(drawn).iter("text")]
    assert "1,000,000,000" not in ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 7, [-2, 0, 2, 4, 6]), (5, 5, [5])],
)
def test_ticks_are_round_numbers_inside(low, high, expected):
    assert svg.ticks(low, high) == expected


def test_steps_are_whole_numbers():
    assert svg.ticks(0, 10, whole=True) == [0, 2, 4, 6, 8, 10]
    assert svg.ticks(0, 12, whole=True) == [0, 5, 10]
    assert svg.ticks(0, 2, whole=True) == [0, 1, 2]


def test_infinite_intervals_are_drawn_to_the_edge():
    drawn = svg.intervals([svg.Span("x", 0.5, -math.inf, math.inf)], x_label="share", level=0.4)
    ET.fromstring(drawn)
    assert "inf" not in drawn.replace("∞", "")


def test_nothing_gives_no_picture():
    assert svg.curves([]) == svg.histogram([], [], x_label="x") == svg.reliability([]) == ""
    assert svg.intervals([svg.Span("x", math.nan, 0, 1)], x_label="x") == ""
