"""Plots as SVG: lines with both axes logarithmic, and bars. A hundred lines of our own instead of matplotlib, which
would bring a dozen packages into the development environment for a few pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

import msgspec

WIDTH, HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 200, 50, 60
_NAMES = 260
# Distinguishable without colour vision, too (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
Points = Sequence[tuple[float, float]]


class Plot(msgspec.Struct, frozen=True):
    """One question: a title, the names of the axes, and a line of points for each name."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Points]


def svg(plot: Plot) -> str:
    """The picture.

    Raises:
        ValueError: nothing to draw, or a value that is not above 0.
    """
    points = [point for line in plot.lines.values() for point in line]
    if not points or min(min(point) for point in points) <= 0:
        raise ValueError(f"{plot.title}: a logarithmic plot needs values above 0, found {points}")
    across = _Axis([x for x, _ in points], _LEFT, WIDTH - _RIGHT)
    up = _Axis([y for _, y in points], HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(_LEFT, 28, plot.title, size=16),
        _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 16, plot.x, anchor="middle"),
        _text(_LEFT, _TOP - 8, plot.y),
    ]
    parts += _grid(across, up)
    for number, (name, line) in enumerate(plot.lines.items()):
        parts += _line(name, sorted(line), across, up, _COLOURS[number % len(_COLOURS)], number)
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    """Values to positions, from a whole power of ten to another."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        self.low = math.floor(math.log10(min(values)))
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)
        self.first, self.last = first, last

    def at(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    def marks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def _grid(across: _Axis, up: _Axis) -> Iterator[str]:
    for value in across.marks():
        x = across.at(value)
        yield f'<path d="M{x:.1f} {up.first}V{up.last}" stroke="#ddd"/>'
        yield _text(x, up.first + 18, f"{value:,.15g}", anchor="middle")
    for value in up.marks():
        y = up.at(value)
        yield f'<path d="M{across.first} {y:.1f}H{across.last}" stroke="#ddd"/>'
        yield _text(across.first - 6, y + 4, f"{value:,.15g}", anchor="end")


def _line(name: str, points: Points, across: _Axis, up: _Axis, colour: str, number: int) -> Iterator[str]:
    places = [(across.at(x), up.at(y)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places)
    y = _TOP + 14 + 20 * number
    yield f'<rect x="{WIDTH - _RIGHT + 12}" y="{y - 9}" width="12" height="10" fill="{colour}"/>'
    yield _text(WIDTH - _RIGHT + 30, y, name)


class Bars(msgspec.Struct, frozen=True):
    """One question: a title, what is measured, and for each name the median and the ends of the middle half."""

    title: str
    measured: str
    bars: Mapping[str, tuple[float, float, float]]


def bars(chart: Bars) -> str:
    """The picture, from 0 on.

    Raises:
        ValueError: nothing to draw.
    """
    if not chart.bars:
        raise ValueError(f"{chart.title}: nothing to draw")
    most = max(high for _, _, high in chart.bars.values())
    height = _TOP + 40 * len(chart.bars) + 30
    scale = (WIDTH - _NAMES - 90) / most
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(20, 28, chart.title, size=16),
        _text(_NAMES, height - 12, chart.measured),
    ]
    for number, (name, (middle, low, high)) in enumerate(chart.bars.items()):
        y = _TOP + 40 * number
        parts += [
            _text(_NAMES - 8, y + 18, name, anchor="end"),
            f'<rect x="{_NAMES}" y="{y}" width="{middle * scale:.1f}" height="26" fill="{_COLOURS[number % len(_COLOURS)]}"/>',
            f'<path d="M{_NAMES + low * scale:.1f} {y + 13}H{_NAMES + high * scale:.1f}" stroke="black" stroke-width="2"/>',
            _text(_NAMES + high * scale + 6, y + 18, f"{middle:.3g}"),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
