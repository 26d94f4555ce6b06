"""What rounding errors of rows cost under a Hessian."""

from __future__ import annotations

import torch

_ROWS_AT_ONCE = 2048  # what they take fits into a processor's cache
COLUMNS_AT_ONCE = 256  # enough for a product to be quick


def row_errors(
    weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor
) -> torch.Tensor:
    """Returns ``d^T H d`` of every row, never negative.

    Args:
        weight: Float32, rows x columns.
        rounded: What is stored of it.
        hessian: Columns x columns, symmetric, or the diagonal of a diagonal one.
    """
    parts = []
    for exact, stored in zip(
        torch.split(weight, _ROWS_AT_ONCE), torch.split(rounded, _ROWS_AT_ONCE), strict=True
    ):
        error = stored - exact
        parts.append(error.square() @ hessian if hessian.ndim == 1 else _form(error, hessian))
    return torch.cat(parts).clamp_min(0)


def _form(error: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Returns the quadratic form of every row, from the upper half of the Hessian."""
    total = error.new_zeros(len(error))
    for start in range(0, error.shape[1], COLUMNS_AT_ONCE):
        own, before = slice(start, start + COLUMNS_AT_ONCE), slice(0, start)
        priced = error[:, own] @ hessian[own, own]
        if start:
            priced.addmm_(error[:, before], hessian[before, own], alpha=2)
        total += priced.mul_(error[:, own]).sum(1)
    return total
