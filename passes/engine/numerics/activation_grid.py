"""Which codes of 8 bits an activation is rounded to, from what was seen of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import ml_dtypes
import numpy as np

from .histogram import Histogram

TYPES: dict[str, type] = {
    "int8": np.int8,
    "uint8": np.uint8,
    "fp8": ml_dtypes.float8_e4m3fn,
}
_LARGEST_FLOAT8 = 448.0
RANGES = ("minmax", "mse")
_SMALLEST_SCALE = 2.0**-20
# Shares of the largest magnitude that the search for a range tries.
_SHARES = tuple(2.0 ** (-step / 8) for step in range(57))
_SHARES_OF_TWO_ENDS = tuple(2.0 ** (-step / 4) for step in range(17))


@dataclass(frozen=True)
class Grid:
    """Codes ``clip(round(x / scale) + zero_point)``, a standard QuantizeLinear.

    Attributes:
        scale: Width of a step.
        zero_point: The code of zero; 0 for ``int8`` and ``fp8``, which are symmetric.
        kind: ``int8``, ``uint8`` or ``fp8``, whose codes are floats (E4M3).
    """

    scale: float
    zero_point: int
    kind: str

    @property
    def dtype(self) -> type:
        """The type of the codes."""
        return TYPES[self.kind]

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Returns ``values`` rounded to their codes' values."""
        if self.kind == "fp8":
            kept = np.clip(values / self.scale, -_LARGEST_FLOAT8, _LARGEST_FLOAT8)
            return kept.astype(self.dtype).astype(np.float64) * self.scale
        limits = np.iinfo(self.dtype)
        codes = np.rint(values / self.scale) + self.zero_point
        clipped: np.ndarray = np.clip(codes, limits.min, limits.max)
        return (clipped - self.zero_point) * self.scale

    def error(self, seen: Histogram) -> float:
        """Returns the mean squared error of rounding the observed values."""
        points, shares = seen.points()
        return float(shares @ np.square(self.rounded(points) - points))


def find_grid(seen: Histogram, kind: str, ranges: str) -> Grid:
    """Returns the grid for an activation.

    Args:
        seen: What it was on calibration samples.
        kind: ``int8`` and ``fp8``: symmetric around zero. ``uint8``: from the low end to the
            high end.
        ranges: ``minmax`` keeps every value that was seen inside; ``mse`` gives up the values
            farthest out where that lowers the mean squared error.
    """
    grids = [_grid(low, high, kind) for low, high in _candidates(seen, kind, ranges)]
    return min(grids, key=lambda one: one.error(seen)) if len(grids) > 1 else grids[0]


def _candidates(seen: Histogram, kind: str, ranges: str) -> list[tuple[float, float]]:
    if ranges == "minmax":
        return [(seen.low, seen.high)]
    if kind != "uint8":
        return [(seen.low * share, seen.high * share) for share in _SHARES]
    ends = product(_SHARES_OF_TWO_ENDS, _SHARES_OF_TWO_ENDS if seen.low < 0 else (1.0,))
    return [(seen.low * low, seen.high * high) for high, low in ends]


def _grid(low: float, high: float, kind: str) -> Grid:
    """Returns the grid whose codes reach from ``low`` to ``high``; zero is one of them."""
    if kind == "fp8":
        return Grid(_storable(max(-low, high) / _LARGEST_FLOAT8), 0, kind)
    if kind == "int8":
        scale = _storable(max(-low / 128, high / 127))
        return Grid(scale, 0, kind)
    scale = _storable((high - low) / 255)
    return Grid(scale, int(np.clip(round(-low / scale), 0, 255)), kind)


def _storable(scale: float) -> float:
    return float(np.float32(max(scale, _SMALLEST_SCALE)))
