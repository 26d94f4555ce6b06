"""Numbers as float16 holds them."""

from __future__ import annotations

import numpy as np

MASKED = 1e8  # numbers from here on rule something out, and say nothing about precision
LARGEST = float(np.finfo(np.float16).max)
# What stands for such a number: two of them still add up to one that float16 holds.
_MASK = LARGEST / 2


def as_half(array: np.ndarray) -> np.ndarray:
    """Returns float16, with infinities as they are.

    What lies beyond the range ends at its edge, but numbers that only rule something out, such
    as the -1e9 or -3.4e38 of an attention mask, become smaller than that: a row in which two
    masks are added must not become infinite, because its softmax would be no number.
    """
    array = np.asarray(array, dtype=np.float32)
    masks = np.isfinite(array) & (np.abs(array) >= MASKED)
    clipped = np.clip(array, -LARGEST, LARGEST, out=array.copy(), where=np.isfinite(array))
    return np.where(masks, np.copysign(_MASK, array), clipped).astype(np.float16)


def underflows(array: np.ndarray) -> bool:
    """Tells whether a number that is not zero becomes zero."""
    return bool(((array != 0) & (as_half(array) == 0)).any())
