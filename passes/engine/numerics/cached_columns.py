"""GPTQ and coordinate descent for processors: a chunk of rows that stays in the cache.

Columns depend on each other one by one inside a block, which compiled loops compute, and by
large products beyond it. Matrices are columns x rows, so that a block is one run of memory.
``lazy_columns`` holds the same for accelerators.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from . import column_kernels

ROWS_AT_ONCE = 2048  # their working set fits into a processor's cache
_BLOCK = 64


def compensated(
    weight: torch.Tensor,
    wide: torch.Tensor,
    low: int,
    high: int,
    order: torch.Tensor,
    upper: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds column by column, letting later columns absorb each error (GPTQ, algorithm 1).

    Args:
        weight: Float32, rows x columns.
        wide: Float32, rows x columns: the scale of each weight.
        low: The lowest code.
        high: The highest code.
        order: The order in which columns are rounded.
        upper: Upper Cholesky factor of the inverse Hessian, in that order.

    Returns:
        The codes, float32, rows x columns; and of every row what its error ``d`` costs,
        ``d^T H d``: the sum of the squares of what went on to later columns.
    """
    left, scales = weight.T[order], wide.T[order].numpy()
    errors, paid = left.new_empty(_BLOCK, left.shape[1]), left.new_zeros(left.shape[1])
    made, rest, own = np.empty_like(scales), left.numpy(), errors.numpy()
    factor, inverse = upper.numpy(), upper.diagonal().reciprocal().numpy()
    for start, stop in _blocks(len(left)):
        column_kernels.compensate(
            rest[start:stop],
            scales[start:stop],
            factor[start:stop, start:stop],
            inverse[start:stop],
            np.float32(low),
            np.float32(high),
            made[start:stop],
            own[: stop - start],
        )
        given = errors[: stop - start]
        paid += given.square().sum(0)
        left[stop:].addmm_(upper[start:stop, stop:].T, given, alpha=-1)
    codes = torch.empty_like(left)
    codes[order] = torch.from_numpy(made)
    return codes.T.contiguous(), paid


def descend(
    priced: torch.Tensor,
    codes: torch.Tensor,
    wide: torch.Tensor,
    low: int,
    high: int,
    hessian: torch.Tensor,
) -> torch.Tensor:
    """Sets each code in turn to its best value given all the others (coordinate descent).

    Args:
        priced: The exact weight times the Hessian, rows x columns.
        codes: Float32, rows x columns.
        wide: Float32, rows x columns: the scale of each weight.
        low: The lowest code.
        high: The highest code.
        hessian: Columns x columns.

    Returns:
        The codes, float32, rows x columns.
    """
    scales = wide.T.contiguous()
    values = codes.T * scales
    slope = torch.addmm(priced.T, hessian, values, beta=-1)
    steps = values.new_empty(_BLOCK, values.shape[1])
    given, sizes, incline = values.numpy(), scales.numpy(), slope.numpy()
    made, own = np.empty_like(given), steps.numpy()
    factors, inverse = hessian.numpy(), hessian.diagonal().reciprocal().numpy()
    for start, stop in _blocks(len(values)):
        column_kernels.descend(
            given[start:stop],
            sizes[start:stop],
            incline[start:stop],
            factors[start:stop, start:stop],
            inverse[start:stop],
            np.float32(low),
            np.float32(high),
            made[start:stop],
            own[: stop - start],
        )
        slope[stop:].addmm_(hessian[stop:, start:stop], steps[: stop - start])
    return torch.from_numpy(made).T.contiguous()


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    """Yields where blocks of columns begin and end; the last may be shorter."""
    for start in range(0, count, _BLOCK):
        yield start, min(start + _BLOCK, count)
