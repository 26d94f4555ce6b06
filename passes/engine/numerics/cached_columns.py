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
) -> torch.Tensor:
    """Rounds column by column, letting later columns absorb each error (GPTQ, algorithm 1).

    Args:
        weight: Float32, rows x columns.
        wide: Float32, rows x columns: the scale of each weight.
        low: The lowest code.
        high: The highest code.
        order: The order in which columns are rounded.
        upper: Upper Cholesky factor of the inverse Hessian, in that order.

    Returns:
        The codes, float32, rows x columns.
    """
    left, scales = weight.T[order], wide.T[order]
    made, errors = torch.empty_like(left), left.new_empty(_BLOCK, left.shape[1])
    inverse = upper.diagonal().reciprocal().numpy()
    for start, stop in _blocks(len(left)):
        own = errors[: stop - start]
        column_kernels.compensate(
            left[start:stop].numpy(),
            scales[start:stop].numpy(),
            upper[start:stop, start:stop].contiguous().numpy(),
            inverse[start:stop],
            np.float32(low),
            np.float32(high),
            made[start:stop].numpy(),
            own.numpy(),
        )
        left[stop:].addmm_(upper[start:stop, stop:].T, own, alpha=-1)
    codes = torch.empty_like(made)
    codes[order] = made
    return codes.T.contiguous()


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
    made, steps = torch.empty_like(values), values.new_empty(_BLOCK, values.shape[1])
    inverse = hessian.diagonal().reciprocal().numpy()
    for start, stop in _blocks(len(values)):
        own = steps[: stop - start]
        column_kernels.descend(
            values[start:stop].numpy(),
            scales[start:stop].numpy(),
            slope[start:stop].numpy(),
            hessian[start:stop, start:stop].contiguous().numpy(),
            inverse[start:stop],
            np.float32(low),
            np.float32(high),
            made[start:stop].numpy(),
            own.numpy(),
        )
        slope[stop:].addmm_(hessian[stop:, start:stop], own)
    return made.T.contiguous()


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    """Yields where blocks of columns begin and end; the last may be shorter."""
    for start in range(0, count, _BLOCK):
        yield start, min(start + _BLOCK, count)
