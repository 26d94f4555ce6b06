"""A small picture of points on logarithmic axes, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 44
_COLORS = ("#1f6f8b", "#d1495b", "#3d8b37", "#8e5ea2")
_STYLE = "font:12px system-ui,sans-serif;background:#fff"


@dataclass(frozen=True)
class Chart:
    """Points in series, each with its own color.

    Attributes:
        x_title: What the horizontal axis counts.
        y_title: What the vertical axis counts; it is logarithmic.
        log_x: Whether the horizontal axis is logarithmic too.
        joined: Names of the series whose points a line joins.
        diagonal: Whether to draw the line on which both axes agree.
    """

    x_title: str
    y_title: str
    log_x: bool = False
    joined: Sequence[str] = field(default_factory=tuple[str, ...])
    diagonal: bool = False

    def draw(self, series: Mapping[str, Sequence[Point]]) -> str:
        """Returns the picture; points that a logarithm cannot show are left out."""
        shown = {name: [p for p in points if self._fits(p)] for name, points in series.items()}
        points = [point for some in shown.values() for point in some]
        if not points:
            return ""
        x = _axis([p[0] for p in points], self.log_x, _LEFT, _WIDTH - _RIGHT)
        y = _axis([p[1] for p in points], True, _HEIGHT - _BOTTOM, _TOP)
        parts = [*self._frame(), *x.ticks(False), *y.ticks(True)]
        if self.diagonal:
            low, high = max(x.low, y.low), min(x.high, y.high)
            ends = [(x.at(one), y.at(one)) for one in (low, high)]
            parts.append(_line(ends, "#bbb"))
        for at, (name, some) in enumerate(shown.items()):
            places = [(x.at(px), y.at(py)) for px, py in sorted(some)]
            parts += self._series(name, places, at)
        view = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {view} style="{_STYLE}">'
        return "\n".join([head, *parts, "</svg>"]) + "\n"

    def _fits(self, point: Point) -> bool:
        x, y = point
        return math.isfinite(x) and math.isfinite(y) and y > 0 and (x > 0 or not self.log_x)

    def _frame(self) -> Iterator[str]:
        middle = (_TOP + _HEIGHT - _BOTTOM) / 2
        yield _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, self.x_title)
        yield _text(14, middle, self.y_title, f' transform="rotate(-90 14 {middle:g})"')

    def _series(self, name: str, places: list[Point], at: int) -> Iterator[str]:
        color = _COLORS[at % len(_COLORS)]
        if name in self.joined:
            yield _line(places, color)
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>'
        top = _TOP + 14 + 16 * at
        yield f'<circle cx="{_WIDTH - 150}" cy="{top - 4}" r="3.5" fill="{color}"/>'
        yield _text(_WIDTH - 140, top, name, anchor="start")


@dataclass(frozen=True)
class _Axis:
    """Maps values between ``low`` and ``high`` to places on the paper."""

    low: float
    high: float
    start: float
    end: float
    scale: Callable[[float], float]

    def at(self, value: float) -> float:
        low, high = self.scale(self.low), self.scale(self.high)
        return self.start + (self.scale(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self, vertical: bool) -> Iterator[str]:
        for value in _round_values(self.low, self.high, self.scale is math.log):
            place = self.at(value)
            if vertical:
                yield _line([(_LEFT, place), (_WIDTH - _RIGHT, place)], "#e3e6eb")
                yield _text(_LEFT - 6, place + 4, f"{value:g}", anchor="end")
            else:
                yield _line([(place, _TOP), (place, _HEIGHT - _BOTTOM)], "#e3e6eb")
                yield _text(place, _HEIGHT - _BOTTOM + 16, f"{value:g}")


def _axis(values: Sequence[float], logarithmic: bool, start: float, end: float) -> _Axis:
    low, high = min(values), max(values)
    if logarithmic:
        return _Axis(low / 1.3, high * 1.3, start, end, math.log)
    room = (high - low) * 0.05 or 0.5
    return _Axis(low - room, high + room, start, end, float)


def _round_values(low: float, high: float, logarithmic: bool) -> Iterator[float]:
    """Yields values that are easy to read: powers of ten and some between, or even steps."""
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        steps = (1, 2, 5) if last - first <= 4 else (1,)
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    else:
        size = 10.0 ** math.floor(math.log10(high - low))
        size *= 0.5 if (high - low) / size > 2.5 else 0.2
        found = [size * at for at in range(math.ceil(low / size), int(high / size) + 1)]
    yield from (value for value in found if low <= value <= high)


def _line(places: Sequence[Point], color: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{points}" fill="none" stroke="{color}"/>'


def _text(x: float, y: float, text: str, more: str = "", anchor: str = "middle") -> str:
    from markupsafe import escape

    place = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {place} text-anchor="{anchor}" fill="#444"{more}>{escape(text)}</text>'
