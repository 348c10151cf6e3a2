"""Plots as SVG, written without a library: ratios with their intervals, shares of the limits, curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.rows import Curve, Result

LABEL, WIDTH, LINE, MARGIN = 420, 480, 20, 30  # pixels: names on the left, the plot beside them, one line a figure
CURVE_HEIGHT = 240
MET, MISSED, PLAIN = "#1b7f4b", "#b3261e", "#335c99"
COLOURS = ("#335c99", "#b3261e", "#1b7f4b", "#8a6d00", "#7b3fa0", "#00788a", "#666666")


@dataclass
class Drawing:
    """SVG elements, and how far down they reach."""

    height: float = MARGIN
    parts: list[str] = field(default_factory=list[str])

    def text(self, x: float, y: float, words: str, anchor: str = "start", colour: str = "#222") -> None:
        """Words, escaped."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = "#ccc", width: float = 1) -> None:
        """A straight line."""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'
        )

    def svg(self) -> str:
        """The whole file."""
        width, height = LABEL + WIDTH + 4 * MARGIN, self.height + MARGIN
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height:.0f}" fill="white"/>',
            *self.parts,
            "</svg>",
            "",
        ])  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """From values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    length: float
    logarithmic: bool

    def place(self, value: float) -> float:
        """Where a value lies; values outside lie at the ends."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = log10(value / self.low) / log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * self.length

    def ticks(self) -> Iterator[float]:
        """Round values: 1, 2 and 5 of each decade, or steps of such a size."""
        if self.logarithmic:
            for decade in range(floor(log10(self.low)), ceil(log10(self.high)) + 1):
                yield from (m * 10**decade for m in (1, 2, 5) if self.low <= m * 10**decade <= self.high)
            return
        rough = (self.high - self.low) / 5
        step = next(m * 10 ** floor(log10(rough)) for m in (1, 2, 5, 10) if m * 10 ** floor(log10(rough)) >= rough)
        value = ceil(self.low / step) * step
        while value <= self.high * (1 + 1e-9):
            yield value
            value += step


def _axis(values: Sequence[float], start: float, length: float, *, logarithmic: bool) -> Axis:
    low, high = min(values), max(values)
    if logarithmic:
        return Axis(low / 1.1, high * 1.1, start, length, True)
    return Axis(0, high * 1.05 or 1, start, length, False)


def ratios(results: Mapping[str, Result]) -> str:
    """How many times faster than each contestant, on a logarithmic axis; bars are ticks, missed ones red."""
    shown = [(name, each) for name, result in results.items() for each in result.ratios if each.low > 0]
    if not shown:
        return ""
    bars = [each.bar for _, each in shown if each.bar]
    axis = _axis([1, *bars, *(v for _, e in shown for v in (e.low, e.high))], LABEL, WIDTH, logarithmic=True)
    drawing = Drawing(height=MARGIN + LINE * len(shown))
    for tick in axis.ticks():
        x = axis.place(tick)
        drawing.line(x, MARGIN, x, drawing.height, "#999" if tick == 1 else "#eee")
        drawing.text(x, drawing.height + 14, f"{tick:g} ×", "middle", "#666")
    drawing.text(LABEL, 18, "times faster than the contestant, with its 95 % interval; | is the bar")
    for index, (name, each) in enumerate(shown):
        y = MARGIN + LINE * (index + 0.5)
        colour = PLAIN if each.bar is None else MET if each.met else MISSED
        drawing.text(LABEL - 8, y + 4, f"{name}: {each.against}", "end")
        drawing.line(axis.place(each.low), y, axis.place(each.high), y, colour, 2)
        drawing.parts.append(f'<circle cx="{axis.place(each.median):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        if each.bar:
            drawing.line(axis.place(each.bar), y - 7, axis.place(each.bar), y + 7, colour)
        drawing.text(LABEL + WIDTH + 8, y + 4, f"{each.median:.2f} ×")
    return drawing.svg()


def fractions(results: Mapping[str, Result]) -> str:
    """Shares of what the machine could give at most."""
    shown = [(name, which, share) for name, result in results.items() for which, share in result.fractions.items()]
    if not shown:
        return ""
    axis = _axis([1, *(share for *_, share in shown)], LABEL, WIDTH, logarithmic=False)
    drawing = Drawing(height=MARGIN + LINE * len(shown))
    drawing.text(LABEL, 18, "share of the machine's limit")
    for tick in axis.ticks():
        x = axis.place(tick)
        drawing.line(x, MARGIN, x, drawing.height, "#999" if tick == 1 else "#eee")
        drawing.text(x, drawing.height + 14, f"{tick:.0%}", "middle", "#666")
    for index, (name, which, share) in enumerate(shown):
        y = MARGIN + LINE * (index + 0.5)
        drawing.text(LABEL - 8, y + 4, f"{name}: {which}", "end")
        drawing.line(axis.place(0), y, axis.place(share), y, PLAIN, 10)
        drawing.text(LABEL + WIDTH + 8, y + 4, f"{share:.1%}")
    return drawing.svg()


def curves(results: Mapping[str, Result]) -> str:
    """Every curve of every row, one below the other."""
    drawing = Drawing()
    for name, result in results.items():
        for curve in result.curves:
            if any(curve.lines.values()):
                _curve(drawing, name, curve)
    return drawing.svg() if drawing.parts else ""


def _curve(drawing: Drawing, name: str, curve: Curve) -> None:
    points = [point for line in curve.lines.values() for point in line]
    left, top = 2.5 * MARGIN, drawing.height + 2 * MARGIN
    across = _axis([x for x, _ in points], left, WIDTH, logarithmic=False)
    up = _axis([y for _, y in points], top + CURVE_HEIGHT, -CURVE_HEIGHT, logarithmic=False)
    drawing.text(left, top - MARGIN, f"{name}: {curve.title}")
    drawing.text(left, top - 10, curve.y, colour="#666")
    drawing.text(left + WIDTH, top + CURVE_HEIGHT + MARGIN, curve.x, "end", "#666")
    for tick in across.ticks():
        drawing.line(across.place(tick), top, across.place(tick), top + CURVE_HEIGHT, "#eee")
        drawing.text(across.place(tick), top + CURVE_HEIGHT + 14, f"{tick:g}", "middle", "#666")
    for tick in up.ticks():
        drawing.line(left, up.place(tick), left + WIDTH, up.place(tick), "#eee")
        drawing.text(left - 6, up.place(tick) + 4, f"{tick:g}", "end", "#666")
    for index, (label, line) in enumerate(curve.lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        placed = [(across.place(x), up.place(y)) for x, y in sorted(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        drawing.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawing.parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        drawing.text(left + WIDTH + 12, top + LINE * (index + 1), label, colour=colour)
    drawing.height = top + CURVE_HEIGHT + MARGIN


PLOTS = {"ratios": ratios, "limits": fractions, "curves": curves}
