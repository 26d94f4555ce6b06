"""INT8 rows rounded anew so that no processor clips sums of two of their products."""

from __future__ import annotations

import numpy as np
import torch

from .gptq import Factor, compensated, row_errors
from .pair_sums import overflowing_rows, without_overflow

_BITS = 8
_MORE_ROOM = 1.016  # as much larger are scales where codes may be off by more than a half


def with_headroom(
    weight: np.ndarray,
    codes: np.ndarray,
    steps: np.ndarray,
    order: np.ndarray,
    factor: Factor | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds the rows anew that a processor without VNNI may clip.

    Args:
        weight: Float32, rows x columns: what the codes stand for.
        codes: int8, rows x columns.
        steps: float16, one for each row.
        order: Columns in the order in which kernels sum them up.
        factor: The factorized Hessian, by which errors make up for one another; None to round
            to nearest.

    Returns:
        Codes, steps and which rows were changed.
    """
    ordered = codes[:, order]
    overflowing = overflowing_rows(ordered)
    exact = ordered * steps.astype(np.float32)[:, None]
    codes, steps = without_overflow(exact, ordered, steps)
    codes = np.ascontiguousarray(codes[:, np.argsort(order)])
    if factor is not None and factor.damped.ndim > 1:  # of a diagonal no column compensates
        _compensate(weight, codes, steps, overflowing, order, factor)
    return codes, steps, overflowing


def _compensate(
    weight: np.ndarray,
    codes: np.ndarray,
    steps: np.ndarray,
    changing: np.ndarray,
    order: np.ndarray,
    factor: Factor,
) -> None:
    """Rounds rows by GPTQ instead, where that loses less and leaves the same headroom.

    Args:
        weight: Float32, rows x columns: what the codes stood for before.
        codes: int8, rows x columns, rounded to nearest; changed in place.
        steps: float16, one for each row; changed in place.
        changing: Which rows are rounded anew.
        order: Columns in the order in which kernels sum them up.
        factor: The factorized Hessian.
    """
    rows = np.flatnonzero(changing)
    wide = np.minimum(steps[rows].astype(np.float32) * _MORE_ROOM, np.finfo(np.float16).max)
    wider = wide.astype(np.float16)
    exact, scales = torch.from_numpy(weight[rows]), torch.from_numpy(wider.astype(np.float32))
    made = compensated(exact, scales[:, None], _BITS, weight.shape[1], factor)
    nearest = torch.from_numpy(codes[rows] * steps[rows].astype(np.float32)[:, None])
    errors = [
        row_errors(exact, one, factor.damped).numpy()
        for one in (made * scales[:, None], nearest)
    ]
    found = made.numpy().astype(np.int8)
    better = (errors[0] < errors[1]) & ~overflowing_rows(found[:, order])
    codes[rows[better]], steps[rows[better]] = found[better], wider[better]
