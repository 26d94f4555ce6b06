"""Floats of 8 bits (E4M3FN: 4 bits of exponent, 3 of mantissa) as codes, with a scale a row.

A code is worth its value times the scale. Codes are spread evenly over magnitudes, so a scale
matters little as long as nothing is cut off and little falls among the denormals.
"""

from __future__ import annotations

import torch

LARGEST = 448.0
_BLOCK = 64  # columns that are compensated one by one
_FRACTIONS = tuple(2.0 ** (-step / 8) for step in range(8))  # of one octave


def as_float8(values: torch.Tensor) -> torch.Tensor:
    """Returns float32 with the nearest numbers of E4M3; sizes end at the largest."""
    return values.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float()


def search_float8_scales(weight: torch.Tensor, price: torch.Tensor) -> torch.Tensor:
    """Returns the scales (rows, float32, float16 numbers) of least price-weighted error.

    Args:
        weight: Float32, rows x columns.
        price: What a squared error costs in each column.
    """
    whole = weight.abs().amax(1).clamp_min(2.0**-14 * LARGEST) / LARGEST
    best = torch.full_like(whole, torch.inf)
    scales = whole
    for fraction in _FRACTIONS:
        # The octave above: nothing is cut off, whatever the fraction.
        scale = (whole * (2 * fraction)).clamp_max(65504.0).half().float()
        error = (as_float8(weight / scale[:, None]) * scale[:, None] - weight).square_()
        cost = error @ price
        better = cost < best
        best, scales = torch.where(better, cost, best), torch.where(better, scale, scales)
    return scales


def round_float8(
    weight: torch.Tensor,
    price: torch.Tensor,
    factored: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds to nearest, or lets later columns absorb each error (GPTQ, algorithm 1).

    Args:
        weight: Float32, rows x columns.
        price: What a squared error costs in each column.
        factored: An order of the columns, and the upper Cholesky factor of the inverse Hessian
            in that order.

    Returns:
        Codes (float16, rows x columns) and scales (float16, rows x 1).
    """
    scales = search_float8_scales(weight, price)[:, None]
    if factored is None:
        return as_float8(weight / scales).half(), scales.half()
    order, upper = factored
    left, codes = weight[:, order].clone(), torch.empty_like(weight)
    for start in range(0, left.shape[1], _BLOCK):
        stop = min(start + _BLOCK, left.shape[1])
        errors = left.new_empty(len(left), stop - start)
        for at in range(start, stop):
            code = as_float8(left[:, at] / scales[:, 0])
            codes[:, at] = code
            error = (left[:, at] - code * scales[:, 0]) / upper[at, at]
            errors[:, at - start] = error
            left[:, at + 1 : stop].addr_(error, upper[at, at + 1 : stop], alpha=-1)
        left[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    result = torch.empty_like(codes)
    result[:, order] = codes
    return result.half(), scales.half()
