"""Rounding a weight matrix to signed codes and group scales.

Throughout: ``weight`` is rows x columns (output channels x input channels), ``hessian`` is
columns x columns, and the error of a row is ``d^T H d`` with ``d`` its rounding error.
Codes and scales are those of ``scales``.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch

from . import cached_columns, lazy_columns
from .factor import Factor, factor_type
from .float8 import round_float8
from .processor import on_processor
from .scales import (
    LARGEST_SCALE,
    WIDEST_BYTE,
    code_range,
    grouped,
    search_scales,
    storable,
    widened,
)

_SMALLEST_GROUP = 32
_ROWS_REFIT = 256  # so that what a product gives is still in the cache when it is summed
# From here on, compensation gains nothing worth its time: at 8 bits kernels that round their
# activations hide it. Kernels that compute in floats show it.
LOSSLESS_BITS, LOSSLESS_FLOAT_BITS = 8, 16


@dataclass(frozen=True)
class Rounded:
    """A rounded matrix.

    Attributes:
        codes: int8, or int16 of more than 8 bits, or float16 of floats; rows x columns.
        scales: float16, rows x groups.
        paid: Float32, what the error of every row costs under the damped Hessian; None where
            rounding has not found it on its way.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    paid: torch.Tensor | None = None

    def dequantize(self, group: int) -> torch.Tensor:
        """Returns the float32 matrix that the codes stand for."""
        columns = self.codes.shape[1]
        return self.codes.float() * widened(self.scales.float(), group, columns)


def working_bytes(rows: int, columns: int, *, coupled: bool = False) -> int:
    """Estimates what rounding a matrix takes above the matrix and its Hessian, as measured.

    Args:
        rows: Its rows.
        columns: Its columns.
        coupled: Whether rows make up for each other's errors.
    """
    groups = columns // _SMALLEST_GROUP + 1
    entry = 28 if factor_type(columns, 0.1) == torch.float32 else 56
    factors = entry * (columns**2 + (rows**2 if coupled else 0))
    refit = 16 * min(rows, _ROWS_REFIT) * groups**2
    return factors + refit + 24 * rows * columns


def _form(matrix: torch.Tensor) -> ModuleType:
    """Returns what rounds columns one after the other where a matrix is."""
    return cached_columns if on_processor(matrix) else lazy_columns


def _code_type(bits: int) -> torch.dtype:
    return torch.int8 if bits <= WIDEST_BYTE else torch.int16


def as_half(weight: torch.Tensor) -> torch.Tensor:
    """Returns, as float32, what float16 keeps of weights; sizes end at its largest number."""
    most = torch.finfo(torch.float16).max
    return weight.clamp(-most, most).half().float()


def nearest(
    weight: torch.Tensor,
    bits: int,
    group: int,
    price: torch.Tensor,
    *,
    signed: bool = True,
    float8: bool = False,
) -> Rounded:
    """Rounds every weight to the nearest code under searched scales.

    Args:
        weight: Float32, rows x columns.
        bits: Width of a code.
        group: Columns that share a scale.
        price: What a squared error costs in each column.
        signed: Whether scales may be negative.
        float8: Whether codes are floats, with a scale for each row.
    """
    if float8:
        return Rounded(*round_float8(weight, price))
    low, high = code_range(bits)
    scales = search_scales(weight, bits, group, price, signed=signed)
    wide = widened(scales, group, weight.shape[1])
    codes = (weight / wide).round_().clamp_(low, high)
    return Rounded(codes.to(_code_type(bits)), scales.half())


def compensated(
    weight: torch.Tensor, scales: torch.Tensor, bits: int, group: int, factor: Factor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds column by column, letting later columns absorb each error (GPTQ, algorithm 1).

    Columns go by falling diagonal of the Hessian while groups stay where they are, so the
    codes need no index at run time.

    Args:
        weight: Float32, rows x columns.
        scales: Float32, rows x groups.
        bits: Width of a code.
        group: Columns that share a scale.
        factor: The factorized Hessian, which is no diagonal.

    Returns:
        The codes, float32, rows x columns; and what every row's error costs under the damped
        Hessian.
    """
    low, high = code_range(bits)
    wide = widened(scales, group, weight.shape[1])
    form, order = _form(weight), factor.order
    codes, paid = form.compensated(weight, wide, low, high, order, factor.upper)
    return codes, paid


def _refit_scales(
    priced: torch.Tensor, codes: torch.Tensor, group: int, hessian: torch.Tensor
) -> torch.Tensor:
    """Returns the scales of least ``d^T H d`` for given codes: a least-squares solve a row.

    With ``c_g`` the codes of group g (zero elsewhere): ``A[g, g'] = c_g^T H c_g'`` and
    ``b[g] = c_g^T H w``.

    Args:
        priced: The exact weight times the Hessian, rows x columns.
        codes: Float32, rows x columns.
        group: Columns that share a scale.
        hessian: Columns x columns.
    """
    parts = [
        _refit_chunk(one, code, group, hessian)
        for one, code in zip(
            torch.split(priced, _ROWS_REFIT), torch.split(codes, _ROWS_REFIT), strict=True
        )
    ]
    return torch.cat(parts)


def _refit_chunk(
    priced: torch.Tensor, codes: torch.Tensor, group: int, hessian: torch.Tensor
) -> torch.Tensor:
    rows, columns = priced.shape
    groups = -(-columns // group)
    target = grouped(priced * codes, group).sum(2)
    matrix = priced.new_zeros(rows, groups, groups)
    for g in range(groups):  # A is symmetric: its lower triangle will do
        start, stop = g * group, min((g + 1) * group, columns)
        seen = (codes[:, start:stop] @ hessian[start:stop, start:]).mul_(codes[:, start:])
        matrix[:, g:, g] = grouped(seen, group).sum(2)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1)
    diagonal += torch.where(mean > 0, mean * 1e-4, 1.0)[:, None]
    lower, failed = torch.linalg.cholesky_ex(matrix)
    together = torch.cholesky_solve(target[..., None], lower)[..., 0]
    apart = target / matrix.diagonal(dim1=1, dim2=2)  # where sums of float32 are no square
    return storable(torch.where(failed[:, None] == 0, together, apart))


def _descend(
    priced: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    group: int,
    hessian: torch.Tensor,
) -> torch.Tensor:
    """Sets each code in turn to its best value given all the others (coordinate descent).

    Args:
        priced: The exact weight times the Hessian, rows x columns.
        codes: Float32, rows x columns.
        scales: Float32, rows x groups.
        bits: Width of a code.
        group: Columns that share a scale.
        hessian: Columns x columns.
    """
    low, high = code_range(bits)
    wide = widened(scales, group, priced.shape[1])
    better: torch.Tensor = _form(priced).descend(priced, codes, wide, low, high, hessian)
    return better


def _round_chunk(
    weight: torch.Tensor,
    bits: int,
    group: int,
    factor: Factor,
    refinements: int,
    *,
    signed: bool,
) -> Rounded:
    most = LARGEST_SCALE * 2 ** (bits - 1)  # beyond what can be stored sums would overflow
    given, weight = weight, weight.clamp(-most, most)
    scales = search_scales(weight, bits, group, factor.price, signed=signed)
    codes, paid = compensated(weight, scales, bits, group, factor)
    if not refinements and torch.equal(given, weight):
        return Rounded(codes.to(_code_type(bits)), scales.half(), paid)
    priced = weight @ factor.damped if refinements else weight
    for _ in range(refinements):
        fitted = _refit_scales(priced, codes, group, factor.damped)
        scales = fitted if signed else torch.where(fitted > 0, fitted, scales)
        codes = _descend(priced, codes, scales, bits, group, factor.damped)
    return Rounded(codes.to(_code_type(bits)), scales.half())


def _rows_at_once(weight: torch.Tensor, group: int) -> int:
    """Returns how many rows to round together where a matrix is."""
    if on_processor(weight):
        return cached_columns.ROWS_AT_ONCE
    return lazy_columns.rows_at_once(weight.shape[1], group)


def gptq(
    weight: torch.Tensor,
    bits: int,
    group: int,
    factor: Factor,
    *,
    refinements: int = 0,
    signed: bool = True,
) -> Rounded:
    """Rounds with error compensation, then alternates scale refits and coordinate descent.

    Args:
        weight: Float32, rows x columns.
        bits: Width of a code.
        group: Columns that share a scale.
        factor: The factorized Hessian.
        refinements: Rounds of scale refit plus coordinate descent over all codes.
        signed: Whether scales may be negative.
    """
    if factor.damped.ndim == 1:  # no column can make up for the error of another
        return nearest(weight, bits, group, factor.price, signed=signed)
    parts = [
        _round_chunk(chunk, bits, group, factor, refinements, signed=signed)
        for chunk in torch.split(weight, _rows_at_once(weight, group))
    ]
    paid = [part.paid for part in parts if part.paid is not None]
    return Rounded(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(paid) if len(paid) == len(parts) else None,
    )


def is_lossless(bits: int, *, in_floats: bool) -> bool:
    """Tells whether a width is so fine that every weight is just rounded to nearest.

    Args:
        bits: Width of a code.
        in_floats: Whether what reads the weight computes in floats.
    """
    return bits >= (LOSSLESS_FLOAT_BITS if in_floats else LOSSLESS_BITS)


def round_rows(
    weight: torch.Tensor,
    bits: int,
    group: int,
    factor: Factor,
    *,
    refinements: int = 0,
    in_floats: bool = False,
    signed: bool = True,
    float8: bool = False,
) -> Rounded:
    """Rounds as well as is worth the time: by ``gptq``, and by ``nearest`` at many bits.

    Args:
        weight: Float32, rows x columns.
        bits: Width of a code.
        group: Columns that share a scale.
        factor: The factorized Hessian.
        refinements: Rounds of scale refit plus coordinate descent over all codes.
        in_floats: Whether what reads the weight computes in floats.
        signed: Whether scales may be negative.
        float8: Whether codes are floats, with a scale for each row.
    """
    if float8:
        factored = (factor.order, factor.upper) if factor.damped.ndim > 1 else None
        return Rounded(*round_float8(weight, factor.price, factored))
    if is_lossless(bits, in_floats=in_floats):
        return nearest(weight, bits, group, factor.price, signed=signed)
    return gptq(weight, bits, group, factor, refinements=refinements, signed=signed)
