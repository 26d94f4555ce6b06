"""What values an activation takes, counted in bins while samples go by."""

from __future__ import annotations

import math

import numpy as np

_BINS = 1 << 16


class Histogram:
    """Counts over equal bins from ``-limit`` to ``limit``, a power of two that grows.

    Attributes:
        low: The smallest value seen, or zero.
        high: The largest value seen, or zero.
        counts: Values in each bin.
        limit: Where the bins end.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.counts = np.zeros(_BINS, dtype=np.int64)
        self.limit = 2.0**-20

    def add(self, values: np.ndarray) -> None:
        """Counts the finite ones of ``values``."""
        flat = values.astype(np.float32, copy=False).ravel()
        flat = flat[np.isfinite(flat)]
        if not flat.size:
            return
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        self._grow(max(-self.low, self.high))
        places = np.floor((flat + self.limit) * (_BINS / (2 * self.limit)))
        places = places.astype(np.int64).clip(0, _BINS - 1)
        self.counts += np.bincount(places, minlength=_BINS)

    def _grow(self, largest: float) -> None:
        """Doubles the limit until it reaches ``largest``: two neighbours become one bin."""
        if largest <= self.limit:
            return
        times = math.ceil(math.log2(largest / self.limit))
        for _ in range(min(times, int(math.log2(_BINS)))):
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(_BINS, dtype=np.int64)
            self.counts[_BINS // 4 : _BINS // 4 * 3] = pairs
        self.limit = math.ldexp(self.limit, times)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the middles of the bins that hold something, and their shares."""
        used = np.flatnonzero(self.counts)
        width = 2 * self.limit / _BINS
        total = max(int(self.counts.sum()), 1)
        return (used + 0.5) * width - self.limit, self.counts[used] / total
