"""Comparisons, boolean logic and bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dtypes import widened
from ..table import lowering, plain

plain("", "Not", torch.logical_not)
plain("", "IsNaN", torch.isnan)

plain("", "And", torch.logical_and, inputs=2)
plain("", "Or", torch.logical_or, inputs=2)
plain("", "Xor", torch.logical_xor, inputs=2)


@lowering("", "Equal", since=7)
def equal(a: Tensor, b: Tensor) -> Tensor:
    """``a == b``."""
    return widened(a) == widened(b)


@lowering("", "Greater", since=7)
def greater(a: Tensor, b: Tensor) -> Tensor:
    """``a > b``."""
    return widened(a) > widened(b)


@lowering("", "GreaterOrEqual")
def greater_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """``a >= b``."""
    return widened(a) >= widened(b)


@lowering("", "Less", since=7)
def less(a: Tensor, b: Tensor) -> Tensor:
    """``a < b``."""
    return widened(a) < widened(b)


@lowering("", "LessOrEqual")
def less_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """``a <= b``."""
    return widened(a) <= widened(b)


@lowering("", "IsInf")
def is_infinite(x: Tensor, *, detect_positive: int = 1, detect_negative: int = 1) -> Tensor:
    """Where ``x`` is infinite, on the sides asked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_positive:
        found = found | torch.isposinf(x)
    if detect_negative:
        found = found | torch.isneginf(x)
    return found


@lowering("", "Where")
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a`` where ``condition``, else ``b``."""
    return torch.where(condition, widened(a), widened(b)).to(a.dtype)


@lowering("", "BitShift")
def bit_shift(x: Tensor, shift: Tensor, *, direction: str) -> Tensor:
    """``x`` with its bits moved LEFT or RIGHT; ``x`` is unsigned."""
    wide, by = widened(x), widened(shift)
    if direction == "LEFT":
        return torch.bitwise_left_shift(wide, by).to(x.dtype)
    shifted = torch.bitwise_right_shift(wide, by)
    if x.dtype == torch.uint64:
        # An int64 drags its sign bit along: clear what came in from the left.
        low_bits = torch.bitwise_left_shift(torch.ones_like(by), 64 - by.clamp(min=1)) - 1
        shifted = torch.where(by > 0, shifted & low_bits, shifted)
    return shifted.to(x.dtype)


def _bitwise(function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    return function(widened(a), widened(b)).to(a.dtype)


@lowering("", "BitwiseNot")
def bitwise_not(x: Tensor) -> Tensor:
    """``~x``."""
    return torch.bitwise_not(widened(x)).to(x.dtype)


@lowering("", "BitwiseAnd")
def bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    """``a & b``."""
    return _bitwise(torch.bitwise_and, a, b)


@lowering("", "BitwiseOr")
def bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    """``a | b``."""
    return _bitwise(torch.bitwise_or, a, b)


@lowering("", "BitwiseXor")
def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    """``a ^ b``."""
    return _bitwise(torch.bitwise_xor, a, b)
