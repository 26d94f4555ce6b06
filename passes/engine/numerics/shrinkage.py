"""Second moments that fewer rows than columns gave: what is noise between columns goes.

From ``n`` rows, ``H = X^T X / n`` has at most rank ``n``: in all other directions an error
costs nothing, which GPTQ would believe. So correlations shrink and energies stay, as in
Schaefer and Strimmer (2005, target D)::

    H* = (1 - rho/2) H + rho/2 diag(H)

with the intensity of the oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero:
Shrinkage Algorithms for MMSE Covariance Estimation, 2010, eq. 23) of the matrix of
correlations ``R``, whose trace is the number of columns ``p``::

    rho = min(1, ((1 - 2/p) tr R^2 + p^2) / ((n + 1 - 2/p) (tr R^2 - p)))

Half of it, because rounding damps the diagonal too: with 96 rows for 1152 columns, errors on
other rows are then 15 % lower where spectra fall slowly, and equal within 1 % where 48
directions hold nearly everything; the whole of it makes those 10 % worse.

Columns that really go together have a large ``tr R^2``, and shrink little.
"""

from __future__ import annotations

import torch

from .doubles import with_doubles


def shrunk(hessian: torch.Tensor, rows: int) -> torch.Tensor:
    """Returns second moments without the noise of too few rows.

    Args:
        hessian: Columns x columns; a vector, which is diagonal already, comes back as it is.
        rows: From how many rows it was gathered. With at least as many as it has columns, it
            comes back as it is.
    """
    if hessian.ndim == 1 or rows >= len(hessian):
        return hessian
    diagonal = hessian.diagonal().clone()
    result = hessian * (1 - _intensity(hessian, rows) / 2)
    result.diagonal().copy_(diagonal)
    return result


def _intensity(hessian: torch.Tensor, rows: int) -> float:
    """Returns the share of the correlations that is taken for noise."""
    hessian = with_doubles(hessian)
    energy = hessian.diagonal().double()
    live = energy > 0
    columns = int(live.sum())
    if columns < 2:
        return 0.0
    scale = torch.where(live, energy, torch.inf).rsqrt()
    # tr R^2: each entry squared, over both energies
    square = float(scale.square() @ (hessian.double().square() @ scale.square()))
    noise = (1 - 2 / columns) * square + columns**2
    signal = (max(rows, 1) + 1 - 2 / columns) * (square - columns)
    return min(1.0, noise / signal) if signal > 0 else 1.0
