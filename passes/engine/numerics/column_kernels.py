"""The inner loops of rounding, compiled for the processor.

In two of them every column waits for the one before. Their arrays are columns x rows: what is
next to each other in memory is computed together, and rows go in tiles that stay in the
first-level cache. The third tries scales. All arrays are float32, and contiguous but for the
corners, of which one number at a time is read. The interpreter's lock is free meanwhile, so
that threads that round other units run at the same time.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled

_TILE = 128  # rows


@compiled
def compensate(
    left: np.ndarray,
    scales: np.ndarray,
    corner: np.ndarray,
    inverse: np.ndarray,
    low: float,
    high: float,
    codes: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Rounds column after column; the others of the block absorb each error (GPTQ).

    Args:
        left: What is left to be rounded, columns x rows; overwritten.
        scales: The scale of every weight, columns x rows.
        corner: Columns x columns of the upper factor of the inverse Hessian.
        inverse: One over the factor's diagonal.
        low: The smallest code.
        high: The largest code.
        codes: Takes the codes, columns x rows.
        errors: Takes the errors over the factor's diagonal, columns x rows.
    """
    width, rows = left.shape
    for first in range(0, rows, _TILE):
        last = min(first + _TILE, rows)
        for k in range(width):
            share, value, scale = inverse[k], left[k, first:last], scales[k, first:last]
            code, error = codes[k, first:last], errors[k, first:last]
            for row in range(last - first):
                nearest = min(max(np.rint(value[row] / scale[row]), low), high)
                code[row] = nearest
                error[row] = (value[row] - nearest * scale[row]) * share
            for later in range(k + 1, width):
                weight, rest = corner[k, later], left[later, first:last]
                for row in range(last - first):
                    rest[row] -= weight * error[row]


@compiled
def descend(
    values: np.ndarray,
    scales: np.ndarray,
    slope: np.ndarray,
    corner: np.ndarray,
    inverse: np.ndarray,
    low: float,
    high: float,
    codes: np.ndarray,
    steps: np.ndarray,
) -> None:
    """Sets code after code to its best value, given all others (coordinate descent).

    Args:
        values: What the codes stand for, columns x rows.
        scales: The scale of every weight, columns x rows.
        slope: Half the derivative of the error, columns x rows; overwritten.
        corner: Columns x columns of the Hessian.
        inverse: One over the Hessian's diagonal.
        low: The smallest code.
        high: The largest code.
        codes: Takes the new codes, columns x rows.
        steps: Takes by how much values change, columns x rows.
    """
    width, rows = values.shape
    for first in range(0, rows, _TILE):
        last = min(first + _TILE, rows)
        for k in range(width):
            share, value, scale = inverse[k], values[k, first:last], scales[k, first:last]
            incline, code = slope[k, first:last], codes[k, first:last]
            step = steps[k, first:last]
            for row in range(last - first):
                wanted = (value[row] - incline[row] * share) / scale[row]
                nearest = min(max(np.rint(wanted), low), high)
                code[row] = nearest
                step[row] = nearest * scale[row] - value[row]
            for later in range(k + 1, width):
                weight, rest = corner[k, later], slope[later, first:last]
                for row in range(last - first):
                    rest[row] += weight * step[row]


@compiled
def search(
    weight: np.ndarray,
    price: np.ndarray,
    tried: np.ndarray,
    group: int,
    low: float,
    high: float,
    best: np.ndarray,
) -> None:
    """Finds for every group the first of the scales of least price-weighted squared error.

    Args:
        weight: Rows x columns.
        price: What a squared error costs in each column.
        tried: The scales to try, rows x groups x scales.
        group: Columns that share a scale; the last group may have fewer.
        low: The smallest code.
        high: The largest code.
        best: Takes the scales, rows x groups.
    """
    rows, columns = weight.shape
    _, groups, count = tried.shape
    for row in range(rows):
        for at in range(groups):
            start, stop = at * group, min((at + 1) * group, columns)
            values, prices = weight[row, start:stop], price[start:stop]
            least, found = np.float32(np.inf), tried[row, at, 0]
            for one in range(count):
                scale = tried[row, at, one]
                share, error = np.float32(1) / scale, np.float32(0)
                for k in range(stop - start):
                    nearest = min(max(np.rint(values[k] * share), low), high)
                    off = nearest * scale - values[k]
                    error += off * off * prices[k]
                if error < least:
                    least, found = error, scale
            best[row, at] = found
