"""Plots are well-formed SVG with every figure in its place."""

from xml.etree import ElementTree

import pytest
from benchmarks.plots import Axis, curves, fractions, ratios
from benchmarks.rows import Curve, Ratio, Result

NAMESPACE = {"svg": "http://www.w3.org/2000/svg"}


def parsed(text):
    return ElementTree.fromstring(text)  # noqa: S314 - we wrote it


def words(svg):
    return [element.text for element in svg.iterfind(".//svg:text", NAMESPACE)]


def test_ratios_lie_at_their_value_and_names_are_escaped():
    result = Result("", ratios=[Ratio("a < b & c", 2.0, 1.0, 4.0, bar=3.0), Ratio("d", 8.0, 8.0, 8.0)])
    svg = parsed(ratios({"row": result}))
    assert "row: a < b & c" in words(svg)
    first, second = svg.iterfind(".//svg:circle", NAMESPACE)
    assert first.get("fill") != second.get("fill"), "a missed bar has another colour"
    assert float(first.get("cx")) < float(second.get("cx"))


def test_shares_of_limits_are_bars_of_that_length():
    svg = parsed(fractions({"row": Result("", fractions={"calibrated": 0.25, "datasheet": 0.5})}))
    assert {"25.0%", "50.0%"} <= set(words(svg))
    bars = [line for line in svg.iterfind(".//svg:line", NAMESPACE) if line.get("stroke-width") == "10"]
    short, long = (float(bar.get("x2")) - float(bar.get("x1")) for bar in bars)
    assert long == pytest.approx(2 * short, abs=0.3)


def test_curves_rise_upwards():
    curve = Curve("latency", "requests/s", "ms", {"tercet": [(1, 2), (4, 9), (2, 3)], "nobody": []})
    svg = parsed(curves({"row": Result("", curves=[curve])}))
    assert {"row: latency", "requests/s", "ms", "tercet"} <= set(words(svg))
    points = [
        tuple(map(float, point.split(","))) for point in svg.find(".//svg:polyline", NAMESPACE).get("points").split()
    ]
    assert sorted(points) == points, "from left to right"
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)


def test_without_figures_there_is_no_plot():
    empty = {"row": Result("", not_measured="no GPU", curves=[Curve("", "", "", {"nobody": []})])}
    assert [draw(empty) for draw in (ratios, fractions, curves)] == ["", "", ""]


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.9, 1.2), (1, 37), (0.004, 5000)])
def test_axes_have_round_ticks_within_their_range(low, high, logarithmic):
    axis = Axis(low if logarithmic else 0, high, 100, 400, logarithmic)
    ticks = list(axis.ticks())
    assert 1 <= len(ticks) <= 30
    assert all(axis.low <= tick <= axis.high * 1.001 for tick in ticks)
    assert all(100 <= axis.place(tick) <= 500 for tick in ticks)
    assert axis.place(axis.high) == pytest.approx(500)
