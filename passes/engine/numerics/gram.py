"""Products of a matrix with itself, of which only the upper triangle is wanted."""

from __future__ import annotations

import torch

_PANELS = 4  # 10 of 16 squares remain; narrower panels multiply more slowly than they save


def add_gram(
    total: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor | None = None
) -> None:
    """Adds ``sum_t c_t x_t x_t^T`` to ``total``, right above and on the diagonal only.

    Args:
        total: Float32, n x n; what is below the diagonal is left undefined.
        rows: The ``x_t``, float32, tokens x n.
        weights: The ``c_t``; None where all are 1.
    """
    size = rows.shape[1]
    scaled = rows if weights is None else rows * weights[:, None]
    width = -(-size // _PANELS)
    for start in range(0, size, width):
        panel = slice(start, min(start + width, size))
        total[panel, start:].addmm_(scaled[:, panel].T, rows[:, start:])


def share_of_square() -> float:
    """Returns which share of the products of a whole square is computed."""
    return (1 + 1 / _PANELS) / 2
