"""Scales of groups of weights: what can be stored, and the best of some to round with.

A code ``q`` in ``[-2^(b-1), 2^(b-1) - 1]`` stands for ``q * scale``. Where the target takes
signed scales, the extreme value of a group, whatever its sign, can sit on the longer side.
"""

from __future__ import annotations

import numpy as np
import torch

from . import column_kernels
from .processor import on_processor

# Fractions of the largest magnitude that the search tries, by bits. Few levels want clipping;
# many do not.
_FRACTIONS = {
    2: (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0),
    3: (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0),
    4: (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05),
    5: (0.9, 0.95, 1.0, 1.05),
}
_SIGNED_SEARCH_BITS = 3  # up to here, where the sides of the range differ most, both are tried
# The smallest normal float16, so that no runtime takes a scale for zero. Steps of 16 bits are
# smaller than that; what reads those scales is a Cast on the CPU, which keeps denormals.
_SMALLEST_SCALE, _SMALLEST_WIDE_SCALE = 2.0**-14, 2.0**-20
LARGEST_SCALE = 65504.0
WIDEST_BYTE = 8  # bits of the codes that fit a byte


def code_range(bits: int) -> tuple[int, int]:
    """Returns the smallest and the largest code of a width."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def storable(scales: torch.Tensor, bits: int = WIDEST_BYTE) -> torch.Tensor:
    """Rounds scales to what float16 can hold; a zero becomes the smallest number allowed.

    Those of wide codes are rounded up: what would be cut off at the end of the range is much
    more than half a step.
    """
    sign = torch.where(scales < 0, -1.0, 1.0)
    smallest = _SMALLEST_SCALE if bits <= WIDEST_BYTE else _SMALLEST_WIDE_SCALE
    size = scales.abs().clamp(smallest, LARGEST_SCALE)
    rounded = size.half()
    if bits > WIDEST_BYTE:
        next_up = (rounded.view(torch.int16) + 1).view(torch.float16)
        fits = (rounded.float() >= size) | (rounded >= LARGEST_SCALE)
        rounded = torch.where(fits, rounded, next_up)
    return sign * rounded.float()


def grouped(matrix: torch.Tensor, group: int) -> torch.Tensor:
    """Returns rows x groups x group, the last group padded with zeros."""
    rows, columns = matrix.shape
    missing = -columns % group
    padded = torch.nn.functional.pad(matrix, (0, missing)) if missing else matrix
    return padded.reshape(rows, -1, group)


def widened(scales: torch.Tensor, group: int, columns: int) -> torch.Tensor:
    """Returns the scale of every weight, rows x columns."""
    rows, groups = scales.shape
    wide = scales[..., None].expand(rows, groups, group).reshape(rows, groups * group)
    return wide[:, :columns]


def search_scales(
    weight: torch.Tensor, bits: int, group: int, price: torch.Tensor, *, signed: bool = True
) -> torch.Tensor:
    """Returns the scales (rows x groups, float32) of least price-weighted squared error.

    Candidates are fractions of the scale that just covers the group: with its extreme value on
    the long side of the range if scales are ``signed``, or else the smallest positive one. At
    2 and 3 bits, where the sides differ most, both signs are tried.

    Args:
        weight: Float32, rows x columns.
        bits: Width of a code.
        group: Columns that share a scale.
        price: What a squared error costs in each column.
        signed: Whether scales may be negative.
    """
    low, high = code_range(bits)
    blocks = grouped(weight, group)
    whole = _covering(blocks, low, high, signed=signed)
    both = signed and bits <= _SIGNED_SEARCH_BITS
    fractions = [
        sign * size
        for sign in ((1.0, -1.0) if both else (1.0,))
        for size in _FRACTIONS.get(bits, (1.0,))
    ]
    if not on_processor(weight):
        return _best_at_once(blocks, whole, grouped(price[None], group), fractions, bits)
    tried = storable(whole * torch.tensor(fractions), bits)
    best = torch.empty(tried.shape[:2])
    column_kernels.search(
        weight.contiguous().numpy(),
        price.contiguous().numpy(),
        tried.numpy(),
        group,
        np.float32(low),
        np.float32(high),
        best.numpy(),
    )
    return best


def _covering(blocks: torch.Tensor, low: int, high: int, *, signed: bool) -> torch.Tensor:
    """Returns the scales (rows x groups x 1) with which no code of a group is cut off."""
    if signed:
        return blocks.gather(2, blocks.abs().argmax(2, keepdim=True)) / low
    ends = blocks.amax(2, keepdim=True) / high, blocks.amin(2, keepdim=True) / low
    return torch.maximum(*ends)


def _best_at_once(
    blocks: torch.Tensor,
    whole: torch.Tensor,
    prices: torch.Tensor,
    fractions: list[float],
    bits: int,
) -> torch.Tensor:
    """Tries fraction after fraction on all groups, as an accelerator does best."""
    low, high = code_range(bits)
    best, scales = torch.full_like(whole, torch.inf), storable(whole, bits)
    for fraction in fractions:
        scale = storable(whole * fraction, bits)
        codes = (blocks / scale).round_().clamp_(low, high)
        error = codes.mul_(scale).sub_(blocks).square_().mul_(prices).sum(2, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, scale, scales)
    return scales[..., 0]
