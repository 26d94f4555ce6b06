"""Codes of 8 bits whose products no processor clips.

x86 processors without VNNI multiply unsigned activations by signed weights two at a time and
keep each pair's sum in 16 bits, *clipped*: 255 * 127 + 255 * 127 becomes 32767. A runtime does
so without a word, and signed activations go the same way, shifted by 128. Codes of neighbours
along the input channels that sum to 128 at most fit: 255 * 128 = 32640.
"""

from __future__ import annotations

import numpy as np

from ....ir import Unit

_LARGEST_SUM = 128
_ROOM = 1  # two codes that are rounded up, half a code each


def overflowing_rows(codes: np.ndarray) -> np.ndarray:
    """Returns which rows hold neighbours that a processor without VNNI may clip.

    Args:
        codes: int8, rows x columns, columns in the order in which products sum them up. Where
            the first pair begins is up to the kernel, so any two neighbours count as a pair.
    """
    return _largest_pair(codes) > _LARGEST_SUM


def without_overflow(
    weight: np.ndarray, codes: np.ndarray, scales: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds the rows that overflow anew, with a scale that is as much larger as it must be.

    Args:
        weight: Float32, rows x columns: what the codes stand for.
        codes: int8, rows x columns.
        scales: float16, one for each row.

    Returns:
        Codes and scales. Rows without overflow are as they were.
    """
    rows = overflowing_rows(codes)
    if not rows.any():
        return codes, scales
    pairs = _largest_pair(weight[rows])
    steps = np.maximum(pairs / (_LARGEST_SUM - _ROOM), np.abs(scales[rows]))
    steps = np.minimum(steps, np.finfo(np.float16).max)
    codes, scales = codes.copy(), scales.copy()
    scales[rows] = np.copysign(steps, scales[rows])
    wide = scales[rows].astype(np.float32)[:, None]
    codes[rows] = np.clip(np.rint(weight[rows] / wide), -_LARGEST_SUM, _LARGEST_SUM - 1)
    return codes, scales


def _largest_pair(matrix: np.ndarray) -> np.ndarray:
    """Returns the largest size of a sum of two neighbours in each row."""
    wide = matrix.astype(np.int16) if matrix.dtype == np.int8 else matrix
    return np.asarray(np.abs(wide[:, 1:] + wide[:, :-1]).max(axis=1, initial=0))


def kernel_order(unit: Unit) -> np.ndarray:
    """Returns the columns of a unit in the order in which integer kernels sum them up.

    Convolutions store the taps of a channel together; their kernels take all channels of one
    tap, then of the next.
    """
    columns = unit.shape[1]
    if unit.uses[0].kind != "conv":
        return np.arange(columns)
    channels = unit.tensor.shape.numpy()[1 - unit.row_axis]
    return np.arange(columns).reshape(channels, -1).T.ravel()
