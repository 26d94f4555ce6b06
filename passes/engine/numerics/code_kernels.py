"""Loops over the codes of some rows of a matrix, compiled for the processor.

All arrays are contiguous along columns. The last group may have fewer columns than the others.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled


@compiled
def expand(
    codes: np.ndarray, scales: np.ndarray, group: int, places: np.ndarray, matrix: np.ndarray
) -> None:
    """Writes what codes stand for into some rows of a matrix.

    Args:
        codes: Int8, rows x columns.
        scales: Float32, rows x groups.
        group: Columns that share a scale.
        places: Int64: the row of the matrix that each row of codes is.
        matrix: Float32, any rows x columns.
    """
    rows, columns = codes.shape
    for row in range(rows):
        into = matrix[places[row]]
        for at in range(scales.shape[1]):
            start, stop, scale = at * group, min((at + 1) * group, columns), scales[row, at]
            some, made = codes[row, start:stop], into[start:stop]
            for k in range(stop - start):
                made[k] = np.float32(some[k]) * scale


@compiled
def group_sums(
    matrix: np.ndarray, codes: np.ndarray, group: int, places: np.ndarray, sums: np.ndarray
) -> None:
    """Sums up codes times entries of some rows of a matrix, by group.

    Args:
        matrix: Float32, any rows x columns.
        codes: Int8, rows x columns.
        group: Columns that share a scale.
        places: Int64: the row of the matrix that each row of codes is.
        sums: Takes the sums, float32, rows x groups.
    """
    rows, columns = codes.shape
    for row in range(rows):
        given = matrix[places[row]]
        for at in range(sums.shape[1]):
            start, stop, total = at * group, min((at + 1) * group, columns), np.float32(0)
            some, entries = codes[row, start:stop], given[start:stop]
            for k in range(stop - start):
                total += np.float32(some[k]) * entries[k]
            sums[row, at] = total
