"""How errors of different rows of a unit act together, as calibration left it."""

from __future__ import annotations

import math

import torch

from ....ir import ArrayStore, Unit
from ..numerics.doubles import with_doubles
from .moved import read_moved

# Measured: what is found between rows holds for other text, and for errors that reach the loss
# through several tokens, only in part. SmolLM2 at 3.5 bits, by share and damping: 0.205 with
# all of it, 0.195 with 0.6, 0.200 with 0.4, 0.212 with nothing.
_SHARE = 0.6


def read_coupling(unit: Unit, arrays: ArrayStore) -> torch.Tensor | None:
    """Returns ``E[(dl/dy) (dl/dy)^T]``, rows x rows, what is between rows taken in part.

    None where ``calibrate{coupled=true}`` has found nothing: another kind of unit, too many
    rows, no gradient, or one too large for its square.
    """
    if f"{unit.name}/0/coupling" not in arrays:
        return None
    found = torch.from_numpy(read_moved(unit, arrays, 0, "coupling"))
    alone = found.diagonal().clone()
    if not 0 < float(alone.mean()) < math.inf:
        return None
    found *= _SHARE
    found.diagonal().copy_(alone)
    return found


def between_rows(coupling: torch.Tensor, error: torch.Tensor, hessian: torch.Tensor) -> float:
    """Returns what errors of different rows add to the predicted divergence, or take from it.

    Args:
        coupling: Rows x rows.
        error: Rows x columns, stored less exact.
        hessian: Columns x columns.
    """
    together = (error @ hessian) @ error.T
    together.diagonal().zero_()
    return 0.5 * float(with_doubles(together * coupling).sum(dtype=torch.float64))
