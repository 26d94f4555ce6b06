"""Rounding a weight matrix to signed codes and group scales.

Throughout: ``weight`` is rows x columns (output channels x input channels), ``hessian`` is
columns x columns, and the error of a row is ``d^T H d`` with ``d`` its rounding error. A code
``q`` in ``[-2^(b-1), 2^(b-1) - 1]`` stands for ``q * scale``. Where the target takes signed
scales, the extreme value of a group, whatever its sign, can sit on the longer side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import column_kernels, lazy_columns
from .factor import Factor, factor_type
from .float8 import round_float8

# Fractions of the largest magnitude that the scale search tries, by bits. Few levels want
# clipping; many do not.
_FRACTIONS = {
    2: (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0),
    3: (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0),
    4: (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05),
    5: (0.9, 0.95, 1.0, 1.05),
}
# The smallest normal float16, so that no runtime takes a scale for zero. Steps of 16 bits are
# smaller than that; what reads those scales is a Cast on the CPU, which keeps denormals.
_SMALLEST_SCALE, _SMALLEST_WIDE_SCALE = 2.0**-14, 2.0**-20
_LARGEST_SCALE = 65504.0
_SMALLEST_GROUP = 32
_ROWS_REFIT = 256  # so that what a product gives is still in the cache when it is summed
_CPU = "cpu"  # everything else is an accelerator, whose form is in lazy_columns
_ROWS_AT_ONCE = 2048  # their working set fits into a processor's cache
# Columns depend on each other one by one inside a block, and by large products beyond it.
_BLOCK = 64
# From here on, compensation gains nothing worth its time: at 8 bits kernels that round their
# activations hide it. Kernels that compute in floats show it.
LOSSLESS_BITS, LOSSLESS_FLOAT_BITS = 8, 16
_WIDEST_BYTE = 8


@dataclass(frozen=True)
class Rounded:
    """A rounded matrix.

    Attributes:
        codes: int8, or int16 of more than 8 bits, or float16 of floats; rows x columns.
        scales: float16, rows x groups.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def dequantize(self, group: int) -> torch.Tensor:
        """Returns the float32 matrix that the codes stand for."""
        columns = self.codes.shape[1]
        wide = self.scales.float().repeat_interleave(group, dim=1)[:, :columns]
        return self.codes.float() * wide


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


def _range(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _code_type(bits: int) -> torch.dtype:
    return torch.int8 if bits <= _WIDEST_BYTE else torch.int16


def storable(scales: torch.Tensor, bits: int = _WIDEST_BYTE) -> torch.Tensor:
    """Rounds scales to what float16 can hold; a zero becomes the smallest number allowed.

    Those of wide codes are rounded up: what would be cut off at the end of the range is much
    more than half a step.
    """
    sign = torch.where(scales < 0, -1.0, 1.0)
    smallest = _SMALLEST_SCALE if bits <= _WIDEST_BYTE else _SMALLEST_WIDE_SCALE
    size = scales.abs().clamp(smallest, _LARGEST_SCALE)
    rounded = size.half()
    if bits > _WIDEST_BYTE:
        next_up = (rounded.view(torch.int16) + 1).view(torch.float16)
        fits = (rounded.float() >= size) | (rounded >= _LARGEST_SCALE)
        rounded = torch.where(fits, rounded, next_up)
    return sign * rounded.float()


def _grouped(matrix: torch.Tensor, group: int) -> torch.Tensor:
    """Returns rows x groups x group, the last group padded with zeros."""
    rows, columns = matrix.shape
    missing = -columns % group
    padded = torch.nn.functional.pad(matrix, (0, missing)) if missing else matrix
    return padded.reshape(rows, -1, group)


def search_scales(
    weight: torch.Tensor, bits: int, group: int, price: torch.Tensor, *, signed: bool = True
) -> torch.Tensor:
    """Returns the scales (rows x groups, float32) of least price-weighted squared error.

    Candidates are fractions of the scale that just covers the group: with its extreme value on
    the long side of the range if scales are ``signed``, or else the smallest positive one. At
    2 and 3 bits, where the sides differ most, both signs are tried.
    """
    low, high = _range(bits)
    blocks, prices = _grouped(weight, group), _grouped(price[None], group)
    whole = _covering_scales(blocks, low, high, signed=signed)
    best = torch.full_like(whole, torch.inf)
    scales = storable(whole, bits)
    for sign in (1.0, -1.0) if signed and bits <= 3 else (1.0,):
        for fraction in _FRACTIONS.get(bits, (1.0,)):
            scale = storable(whole * (sign * fraction), bits)
            codes = (blocks / scale).round_().clamp_(low, high)
            error = codes.mul_(scale).sub_(blocks).square_().mul_(prices).sum(2, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            scales = torch.where(better, scale, scales)
    return scales[..., 0]


def _covering_scales(
    blocks: torch.Tensor, low: int, high: int, *, signed: bool
) -> torch.Tensor:
    """Returns the scales (rows x groups x 1) with which no code of a group is cut off."""
    if signed:
        return blocks.gather(2, blocks.abs().argmax(2, keepdim=True)) / low
    ends = blocks.amax(2, keepdim=True) / high, blocks.amin(2, keepdim=True) / low
    return torch.maximum(*ends)


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
    low, high = _range(bits)
    scales = search_scales(weight, bits, group, price, signed=signed)
    wide = scales.repeat_interleave(group, dim=1)[:, : weight.shape[1]]
    codes = (weight / wide).round_().clamp_(low, high)
    return Rounded(codes.to(_code_type(bits)), scales.half())


def compensated(
    weight: torch.Tensor, scales: torch.Tensor, bits: int, group: int, factor: Factor
) -> torch.Tensor:
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
        The codes, float32, rows x columns.
    """
    low, high = _range(bits)
    order, upper = factor.order, factor.upper
    if weight.device.type != _CPU:
        wide = _widened(scales, group, weight.shape[1])
        return lazy_columns.compensated(weight, wide, low, high, order, upper)
    left = weight[:, order]
    codes = torch.empty_like(left)
    owner = order // group
    inverse = upper.diagonal().reciprocal().numpy()
    for start, stop in _blocks(left.shape[1], _BLOCK):
        block = left[:, start:stop].T.contiguous()
        wide = scales[:, owner[start:stop]].T.contiguous()
        corner = upper[start:stop, start:stop].contiguous()
        made, errors = torch.empty_like(block), torch.empty_like(block)
        column_kernels.compensate(
            block.numpy(),
            wide.numpy(),
            corner.numpy(),
            inverse[start:stop],
            low,
            high,
            made.numpy(),
            errors.numpy(),
        )
        codes[:, start:stop] = made.T
        left[:, stop:].addmm_(errors.T, upper[start:stop, stop:], alpha=-1)
    result = torch.empty_like(codes)
    result[:, order] = codes
    return result


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
    target = _grouped(priced * codes, group).sum(2)
    matrix = priced.new_zeros(rows, groups, groups)
    for g in range(groups):  # A is symmetric: its lower triangle will do
        start, stop = g * group, min((g + 1) * group, columns)
        seen = (codes[:, start:stop] @ hessian[start:stop, start:]).mul_(codes[:, start:])
        matrix[:, g:, g] = _grouped(seen, group).sum(2)
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
    low, high = _range(bits)
    columns = priced.shape[1]
    wide = _widened(scales, group, columns)
    if priced.device.type != _CPU:
        return lazy_columns.descend(priced, codes, wide, low, high, hessian)
    values = codes * wide
    slope = torch.addmm(priced, values, hessian, beta=-1)
    result = torch.empty_like(codes)
    inverse = hessian.diagonal().reciprocal().numpy()
    for start, stop in _blocks(columns, _BLOCK):
        span = slice(start, stop)
        scale, value = wide[:, span].T.contiguous(), values[:, span].T.contiguous()
        local, corner = slope[:, span].T.contiguous(), hessian[span, span].contiguous()
        made, steps = torch.empty_like(value), torch.empty_like(value)
        column_kernels.descend(
            value.numpy(),
            scale.numpy(),
            local.numpy(),
            corner.numpy(),
            inverse[start:stop],
            low,
            high,
            made.numpy(),
            steps.numpy(),
        )
        result[:, span] = made.T
        slope[:, stop:].addmm_(steps.T, hessian[span, stop:])
    return result


def _widened(scales: torch.Tensor, group: int, columns: int) -> torch.Tensor:
    """Returns the scale of every weight, rows x columns."""
    return scales.repeat_interleave(group, dim=1)[:, :columns]


def _blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Yields where runs of ``size`` begin and end; the last may be shorter."""
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _round_chunk(
    weight: torch.Tensor,
    bits: int,
    group: int,
    factor: Factor,
    refinements: int,
    *,
    signed: bool,
) -> Rounded:
    most = _LARGEST_SCALE * 2 ** (bits - 1)  # beyond what can be stored sums would overflow
    weight = weight.clamp(-most, most)
    scales = search_scales(weight, bits, group, factor.price, signed=signed)
    codes = compensated(weight, scales, bits, group, factor)
    priced = weight @ factor.damped if refinements else weight
    for _ in range(refinements):
        fitted = _refit_scales(priced, codes, group, factor.damped)
        scales = fitted if signed else torch.where(fitted > 0, fitted, scales)
        codes = _descend(priced, codes, scales, bits, group, factor.damped)
    return Rounded(codes.to(_code_type(bits)), scales.half())


def _rows_at_once(weight: torch.Tensor, group: int) -> int:
    """Returns how many rows to round together where a matrix is."""
    if weight.device.type == _CPU:
        return _ROWS_AT_ONCE
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
    return Rounded(
        torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts])
    )


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
    if bits >= (LOSSLESS_FLOAT_BITS if in_floats else LOSSLESS_BITS):
        return nearest(weight, bits, group, factor.price, signed=signed)
    return gptq(weight, bits, group, factor, refinements=refinements, signed=signed)


def row_errors(
    weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor
) -> torch.Tensor:
    """Returns ``d^T H d`` of every row, never negative; a vector is a diagonal Hessian."""
    parts = []
    for exact, stored in zip(
        torch.split(weight, _ROWS_AT_ONCE), torch.split(rounded, _ROWS_AT_ONCE), strict=True
    ):
        error = stored - exact
        priced = error * hessian if hessian.ndim == 1 else error @ hessian
        parts.append((priced * error).sum(1))
    return torch.cat(parts).clamp_min(0)
