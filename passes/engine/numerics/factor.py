"""A Hessian, prepared once for rounding at every width."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from .doubles import with_doubles

_WELL_CONDITIONED = 1e5
_BLOCK_OF_INVERSE = 256


@dataclass(frozen=True)
class Factor:
    """What rounding needs of a Hessian, computed once and used at every width.

    Attributes:
        damped: The Hessian with ``damping`` times its mean diagonal added.
        order: Columns by falling diagonal: the order in which GPTQ rounds them.
        upper: Upper Cholesky factor of the inverse of ``damped``, in that order.
        price: What one unit of squared rounding error costs in each column once the later
            columns have compensated for it, ``1 / upper_kk^2``.
        damping: What was added to the diagonal.
    """

    damped: torch.Tensor
    order: torch.Tensor
    upper: torch.Tensor
    price: torch.Tensor
    damping: float

    def to(self, device: torch.device) -> Factor:
        """Returns the same on a device."""
        return replace(
            self,
            damped=self.damped.to(device),
            order=self.order.to(device),
            upper=self.upper.to(device),
            price=self.price.to(device),
        )


def factorize(hessian: torch.Tensor, damping: float) -> Factor:
    """Prepares a Hessian, or the diagonal of a diagonal one, for rounding.

    The damping doubles until the factorization succeeds; a dead column (zero diagonal) thereby
    gets a positive price too.

    Raises:
        ValueError: The Hessian holds NaN or infinity, for which no damping would do.
    """
    device, hessian = hessian.device, with_doubles(hessian)
    if not math.isfinite(float(hessian.sum(dtype=torch.float64))):
        raise ValueError("a Hessian holds NaN or infinity")
    if hessian.ndim == 1:
        return _diagonal_factor(hessian, damping).to(device)
    mean = float(hessian.diagonal().mean(dtype=torch.float64))
    if not mean > 0:
        hessian, mean = torch.eye(len(hessian), device=hessian.device), 1.0
    kind = factor_type(len(hessian), damping)
    eye = torch.eye(len(hessian), dtype=kind, device=hessian.device)
    while True:
        damped = hessian.to(kind) + eye * (mean * damping)
        order = damped.diagonal().argsort(descending=True, stable=True)
        # With J for a reversal and J H J = M M^T, the factor is the inverse of J M J.
        lower, info = torch.linalg.cholesky_ex(damped[order][:, order].flip(0, 1))
        if int(info) == 0:
            break
        damping *= 2
    upper = _inverse_of_upper(lower.flip(0, 1)).float()
    price = torch.empty_like(upper[0])
    price[order] = upper.diagonal() ** -2
    return Factor(damped.float(), order, upper, price, mean * damping).to(device)


def factor_type(size: int, damping: float) -> torch.dtype:
    """Returns the type in which to factorize a damped Gram matrix.

    Its largest eigenvalue is at most ``size`` times the mean diagonal, its smallest at least
    ``damping`` times that. Up to a quotient of 1e5, float32 is exact enough: on SmolLM2's
    Hessians its factors differ by 4e-5 at most, and the loss of what they round by nothing.
    """
    return torch.float32 if size <= _WELL_CONDITIONED * damping else torch.float64


def _inverse_of_upper(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the inverse of an upper triangular matrix, from those of its halves."""
    size = len(matrix)
    if size <= _BLOCK_OF_INVERSE:
        eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        solved: torch.Tensor = torch.linalg.solve_triangular(matrix, eye, upper=True)
        return solved
    half = size // 2
    first = _inverse_of_upper(matrix[:half, :half])
    second = _inverse_of_upper(matrix[half:, half:])
    result = torch.zeros_like(matrix)
    result[:half, :half], result[half:, half:] = first, second
    result[:half, half:] = -(first @ matrix[:half, half:]) @ second
    return result


def _diagonal_factor(diagonal: torch.Tensor, damping: float) -> Factor:
    """Prepares a diagonal Hessian, all of whose matrices are vectors."""
    mean = float(diagonal.mean())
    damped = diagonal + mean * damping if mean > 0 else torch.ones_like(diagonal)
    order = torch.arange(len(damped), device=damped.device)
    return Factor(damped, order, damped.rsqrt(), damped, max(mean, 0.0) * damping)
