"""INT8 rows rounded anew so that no processor clips sums of two of their products."""

from __future__ import annotations

import numpy as np
import torch

from .factor import Factor
from .gptq import compensated
from .pair_sums import overflowing_rows, without_overflow
from .row_errors import row_errors

_BITS = 8
_MORE_ROOM = 1.016  # as much larger are scales where codes may be off by more than a half


def with_headroom(
    codes: np.ndarray,
    steps: np.ndarray,
    order: np.ndarray,
    factor: Factor | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds the rows anew that a processor without VNNI may clip.

    Args:
        codes: int8, rows x columns; a column of zeros stays one.
        steps: float16, one for each row.
        order: Columns in the order in which kernels sum them up.
        factor: The factorized Hessian, by which errors make up for one another; None to round
            to nearest.

    Returns:
        Codes, steps and which rows were changed.
    """
    overflowing = overflowing_rows(codes[:, order])
    exact = codes * steps.astype(np.float32)[:, None]
    made, steps = without_overflow(exact[:, order], codes[:, order], steps)
    made = np.ascontiguousarray(made[:, np.argsort(order)])
    if factor is not None and factor.damped.ndim > 1:  # of a diagonal no column compensates
        _compensate(exact, made, steps, overflowing, order, factor)
    return made, steps, overflowing


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
    made, paid = compensated(exact, scales[:, None], _BITS, weight.shape[1], factor)
    nearest = torch.from_numpy(codes[rows] * steps[rows].astype(np.float32)[:, None])
    errors = [paid.numpy(), row_errors(exact, nearest, factor.damped).numpy()]
    found = made.numpy().astype(np.int8)
    found[:, ~weight.any(axis=0)] = 0  # whatever takes these columns adds them by itself
    better = (errors[0] < errors[1]) & ~overflowing_rows(found[:, order])
    codes[rows[better]], steps[rows[better]] = found[better], wider[better]
