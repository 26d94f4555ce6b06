"""GPTQ and coordinate descent for accelerators: all rows at once, columns in lazy blocks.

``cached_columns`` holds the same for processors, where a chunk of rows stays in the cache.
Here what counts is how many operations are begun, so a column takes as few as possible, those
of a block are begun by one call where the device can record them, matrices are columns x rows
so that each reads memory in one run, and no number ever comes back to the host. What a column
does to columns of its own block is added at once, to all later ones by one product a block.

Codes are the same except where a value is nearly halfway between two of them: sums are in
another order, and errors are divided by the diagonal later.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import recorded

_BLOCK = 64
_MOST_BYTES = 2 << 30  # of the working set of the rows that are rounded at once
_FEWEST_ROWS, _MOST_ROWS = 256, 16384


def rows_at_once(columns: int, group: int) -> int:
    """Returns how many rows to round together: as many as keep within ``_MOST_BYTES``.

    Args:
        columns: Columns of the matrix.
        group: Columns that share a scale; the refit of a row takes the square of the groups.
    """
    a_row = 40 * columns + 16 * (-(-columns // group)) ** 2
    return max(_FEWEST_ROWS, min(_MOST_ROWS, _MOST_BYTES // a_row))


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
    left, scales = weight.T[order], wide.T[order]
    ratio = upper / upper.diagonal()[:, None]
    made, paid = torch.empty_like(left), left.new_zeros(left.shape[1])
    prices = upper.diagonal() ** -2
    for span, later in _blocks(len(left)):
        errors = torch.empty_like(left[span])
        given = left[span], scales[span], ratio[span, span]
        recorded.run(_compensate, given, (made[span], errors), low, high)
        left[later].addmm_(ratio[span, later].T, errors, alpha=-1)
        paid += prices[span] @ errors.square()
    codes = torch.empty_like(made)
    codes[order] = made
    return codes.T.contiguous(), paid


def _compensate(
    left: torch.Tensor,
    scales: torch.Tensor,
    ratio: torch.Tensor,
    made: torch.Tensor,
    errors: torch.Tensor,
    low: int,
    high: int,
) -> None:
    """Fills ``made`` and ``errors`` for the columns of one block; all are columns x rows."""
    for k in range(len(left)):
        torch.div(left[k], scales[k], out=made[k]).round_().clamp_(low, high)
        torch.addcmul(left[k], made[k], scales[k], value=-1, out=errors[k])
        left[k + 1 :].addr_(ratio[k, k + 1 :], errors[k], alpha=-1)


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
    slope = torch.addmm(priced.T, hessian.T, values, beta=-1)
    pull = -hessian.diagonal().reciprocal()
    made = torch.empty_like(values)
    for span, later in _blocks(len(values)):
        steps = torch.empty_like(values[span])
        given = values[span], scales[span], slope[span], hessian[span, span], pull[span]
        recorded.run(_descend, given, (made[span], steps), low, high)
        slope[later].addmm_(hessian[span, later].T, steps)
    return made.T.contiguous()


def _descend(
    values: torch.Tensor,
    scales: torch.Tensor,
    slope: torch.Tensor,
    hessian: torch.Tensor,
    pull: torch.Tensor,
    made: torch.Tensor,
    steps: torch.Tensor,
    low: int,
    high: int,
) -> None:
    """Fills ``made`` and ``steps`` for the columns of one block; all are columns x rows."""
    for k in range(len(values)):
        torch.addcmul(values[k], slope[k], pull[k], out=made[k])
        made[k].div_(scales[k]).round_().clamp_(low, high)
        torch.mul(made[k], scales[k], out=steps[k]).sub_(values[k])
        slope[k + 1 :].addr_(hessian[k, k + 1 :], steps[k])


def _blocks(count: int) -> Iterator[tuple[slice, slice]]:
    """Yields the columns of each block, and all those after it."""
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        yield slice(start, stop), slice(stop, count)
