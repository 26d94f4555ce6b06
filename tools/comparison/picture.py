"""The picture of a comparison: what was lost against what was stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .chart import Chart
from .chart import Point as Place
from .point import MEASURED
from .table import damage


def draw(points: Sequence[dict[str, Any]]) -> str:
    """Returns an SVG with a line for every method; empty when nothing was measured."""
    measured = [one for one in points if one["status"] == MEASURED]
    key, title = damage(measured)
    series: dict[str, list[Place]] = {}
    for one in measured:
        name = f"{one['method']}, file budget" if one.get("file") else one["method"]
        if one.get(key) is not None:  # not a number in JSON: nothing to draw
            series.setdefault(name, []).append((one["bits"], one[key]))
    return Chart("stored bits per weight", title, joined=tuple(series)).draw(series)
