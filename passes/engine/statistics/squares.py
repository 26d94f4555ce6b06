"""Square statistics in the store: half a matrix, in float16.

A Gram matrix ``H`` is symmetric, and its entries span many orders of magnitude. It is kept as
the deviations of its columns in float32 and the correlations above its diagonal in float16,
row after row::

    s_i = sqrt(H_ii)        R_ij = H_ij / (s_i s_j)        H_ij = s_i s_j R_ij

Correlations lie between -1 and 1, where float16 keeps three to four digits: a hundredth of the
noise that a few thousand tokens leave, and far less than what rounding adds to the diagonal.
"""

from __future__ import annotations

import numpy as np
import torch

from ....ir import ArrayStore
from ..numerics.borrowing import borrowed

DEVIATIONS = "/deviations"  # what the name of the array with them ends in


def packed_square(name: str, matrix: torch.Tensor) -> dict[str, np.ndarray]:
    """Returns the arrays to store a Gram matrix as.

    Args:
        name: Name of the matrix in the store.
        matrix: Float32, n x n; what is below the diagonal is not read.
    """
    deviations = matrix.diagonal().clamp_min(0).sqrt()
    scales = torch.where(deviations > 0, deviations, torch.inf).reciprocal()
    size = len(matrix)
    triangle = torch.empty(size * (size - 1) // 2, dtype=torch.float16)
    at = 0
    for row in range(size - 1):
        end = at + size - 1 - row
        triangle[at:end] = matrix[row, row + 1 :] * scales[row + 1 :] * scales[row]
        at = end
    return {name: triangle.numpy(), name + DEVIATIONS: deviations.numpy()}


def put_square(arrays: ArrayStore, name: str, matrix: np.ndarray) -> None:
    """Keeps a Gram matrix, n x n, in memory under ``name``."""
    for key, array in packed_square(name, torch.from_numpy(matrix)).items():
        arrays.put(key, array)


def read_square(arrays: ArrayStore, name: str) -> np.ndarray:
    """Returns the Gram matrix called ``name``: float32, n x n.

    Raises:
        MissingFact: There is none.
    """
    deviations = borrowed(arrays.get(name + DEVIATIONS))
    triangle = borrowed(arrays.get(name)).float()
    size = len(deviations)
    matrix = torch.zeros(size, size)
    at = 0
    for row in range(size - 1):
        end = at + size - 1 - row
        matrix[row, row + 1 :] = triangle[at:end]
        at = end
    matrix += matrix.T.clone()
    matrix.diagonal().fill_(1.0)
    matrix *= deviations
    matrix *= deviations[:, None]
    return matrix.numpy()
