"""A small picture of points on logarithmic axes, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 430, 64, 570, 16, 382  # of the plot, without texts
_LABELS = _RIGHT + 18  # where the names of the series stand
_LETTER = 6.8  # typical width of a letter in a name
_LABEL_GAP = 16.0  # between the base lines of two labels
# Told apart with every kind of color vision (after Okabe and Ito), on white and on black.
_LIGHT = (
    "#0072b2",
    "#d55e00",
    "#00805c",
    "#b0508a",
    "#a86f00",
    "#3a86b8",
    "#666666",
    "#7a6c00",
)
_DARK = (
    "#4fb0ea",
    "#ff8c42",
    "#33cf9f",
    "#e79cc8",
    "#f3b43f",
    "#9ad4ff",
    "#b3b3b3",
    "#d8cb4f",
)
# One shape a series, for those who see or print no colors: a path around its middle.
_SHAPES = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "m-3.5-3.5h7v7h-7z",
    "m0-4.6 4.4 7.8h-8.8z",
    "m0-5 4.4 5-4.4 5-4.4-5z",
    "m0 4.6 4.4-7.8h-8.8z",
    "m-4.5-1.3h3.2v-3.2h2.6v3.2h3.2v2.6h-3.2v3.2h-2.6v-3.2h-3.2z",
)


@dataclass(frozen=True)
class Chart:
    """Points in series, each with its own color and shape, named where its line ends.

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
        """Returns the picture; points that a logarithm cannot show are left out.

        The line of the first series is the strongest. Without any point there is no picture.
        """
        shown = {name: [p for p in points if self._fits(p)] for name, points in series.items()}
        points = [point for some in shown.values() for point in some]
        if not points:
            return ""
        x = _axis([p[0] for p in points], self.log_x, _LEFT, _RIGHT)
        y = _axis([p[1] for p in points], True, _BOTTOM, _TOP)
        parts = [*self._frame(), *x.ticks(False), *y.ticks(True)]
        if self.diagonal:
            low, high = max(x.low, y.low), min(x.high, y.high)
            parts.append(_line([(x.at(one), y.at(one)) for one in (low, high)], "diagonal"))
        places = {
            name: [(x.at(px), y.at(py)) for px, py in sorted(some)]
            for name, some in shown.items()
        }
        # The first series, which matters most, is drawn last and so lies above the others.
        for at, name in reversed(list(enumerate(places))):
            parts += self._series(name, places[name], shown[name], at)
        parts += self._labels(places)
        return "\n".join([*self._head(series), *parts, "</svg>"]) + "\n"

    def _fits(self, point: Point) -> bool:
        x, y = point
        return math.isfinite(x) and math.isfinite(y) and y > 0 and (x > 0 or not self.log_x)

    def _head(self, names: Iterable[str]) -> Iterator[str]:
        width = _LABELS + 16 + _LETTER * max(map(len, names))
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {_HEIGHT}"'
            ' role="img">'
        )
        yield f"<title>{_escaped(self.y_title)} against {_escaped(self.x_title)}</title>"
        yield _style()

    def _frame(self) -> Iterator[str]:
        middle = (_TOP + _BOTTOM) / 2
        yield _text((_LEFT + _RIGHT) / 2, _HEIGHT - 10, self.x_title)
        yield _text(16, middle, self.y_title, more=f' transform="rotate(-90 16 {middle:g})"')

    def _series(
        self, name: str, places: list[Point], points: list[Point], at: int
    ) -> Iterator[str]:
        if name in self.joined and len(places) > 1:
            yield _line(places, f"{_kind(at)} line{' first' if at == 0 else ''}")
        for place, (x, y) in zip(places, sorted(points), strict=True):
            title = f"<title>{_escaped(name)}: {x:.4g}, {y:.4g}</title>"
            yield _marker(place, at, title)

    def _labels(self, places: Mapping[str, list[Point]]) -> Iterator[str]:
        """Names the series where their lines end; those without lines from the top."""
        ends = {
            name: some[-1][1] if some and name in self.joined else float(_TOP)
            for name, some in places.items()
        }
        rows = _spread(list(ends.values()), _TOP + 6, _BOTTOM)
        for at, (name, row) in enumerate(zip(places, rows, strict=True)):
            if name in self.joined and places[name]:
                yield _line([places[name][-1], (_LABELS - 6, row)], f"{_kind(at)} leader")
            yield _marker((_LABELS, row), at)
            yield _text(_LABELS + 9, row + 4, name, "start", f' class="{_kind(at)} name"')


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
                yield _line([(_LEFT, place), (_RIGHT, place)], "grid")
                yield _text(_LEFT - 7, place + 4, f"{value:g}", "end")
            else:
                yield _line([(place, _TOP), (place, _BOTTOM)], "grid")
                yield _text(place, _BOTTOM + 17, f"{value:g}")


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
        size *= 0.5 if (high - low) / size > 1.5 else 0.2
        found = [size * at for at in range(math.ceil(low / size), int(high / size) + 1)]
    yield from (value for value in found if low <= value <= high)


def _spread(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Returns places near the wanted ones, in their order, that leave room for a line each."""
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    places = list(wanted)
    least = low
    for at in order:
        places[at] = max(wanted[at], least)
        least = places[at] + _LABEL_GAP
    most = max(high, low + _LABEL_GAP * (len(wanted) - 1))
    for at in reversed(order):
        places[at] = min(places[at], most)
        most = places[at] - _LABEL_GAP
    return places


def _style() -> str:
    """Returns the colors, for light and dark surroundings."""
    common = (
        "text{font:12px system-ui,sans-serif}polyline{fill:none}"
        ".line{stroke-width:1.5}.first{stroke-width:3}.leader{stroke-width:.75;opacity:.6}"
    )
    light = _colors(_LIGHT, "#fff", "#444", "#e3e6eb")
    dark = _colors(_DARK, "#0d1117", "#adb5bd", "#272d36")
    return f"<style>{common}{light}@media (prefers-color-scheme:dark){{{dark}}}</style>"


def _colors(palette: Sequence[str], paper: str, ink: str, grid: str) -> str:
    series = "".join(
        f".s{at}{{fill:{one}}}polyline.s{at}{{stroke:{one};fill:none}}"
        for at, one in enumerate(palette)
    )
    lines = f".grid{{stroke:{grid}}}.diagonal{{stroke:{ink};opacity:.5}}"
    return f"svg{{background:{paper}}}text{{fill:{ink}}}{lines}{series}"


def _kind(at: int) -> str:
    return f"s{at % len(_LIGHT)}"


def _marker(place: Point, at: int, title: str = "") -> str:
    shape = _SHAPES[at % len(_SHAPES)]
    x, y = place
    path = f'<path class="{_kind(at)} point" d="M{x:.1f} {y:.1f}{shape}"'
    return f"{path}>{title}</path>" if title else f"{path}/>"


def _line(places: Sequence[Point], kind: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{kind}" points="{points}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {place} text-anchor="{anchor}"{more}>{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))
