"""Conversions between element types."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ..dtypes import INTEGER_RANGES, NARROW_FLOATS, onnx_dtype, torch_dtype
from ..table import lowering

_FLOAT8 = {
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
}
_HAS_INFINITY = {ir.DataType.FLOAT8E5M2}
_NARROW_INTEGERS = {
    ir.DataType.INT4,
    ir.DataType.UINT4,
    ir.DataType.INT2,
    ir.DataType.UINT2,
}


@lowering("", "Cast", since=6)
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """``x`` as ONNX element type ``to``."""
    code = ir.DataType(to)
    if code in _FLOAT8:
        return _to_float8(x, code, saturate=bool(saturate))
    if code is ir.DataType.FLOAT8E8M0:
        return _to_power_of_two(x, round_mode)
    if code in NARROW_FLOATS:
        return to_narrow_float(x, code)
    if code in _NARROW_INTEGERS:
        return _to_narrow_integer(x, code)
    return _to_torch(x, torch_dtype(code))


@lowering("", "CastLike")
def cast_like(
    x: Tensor,
    like: Tensor,
    *,
    saturate: int = 1,
    round_mode: str = "up",
    input_types: Sequence[int | None],
) -> Tensor:
    """``x`` as the element type of ``like``."""
    to = input_types[1]
    code = int(onnx_dtype(like.dtype)) if to is None else to
    return cast(x, to=code, saturate=saturate, round_mode=round_mode)


@lowering("", "BitCast")
def bit_cast(x: Tensor, *, to: int) -> Tensor:
    """The bits of ``x`` read as ONNX element type ``to`` of the same width."""
    return x.view(torch_dtype(to))


def _to_torch(x: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype is torch.bool:
        return x != 0
    if x.is_floating_point() and dtype in (torch.uint8, torch.int8, torch.uint16, torch.int16):
        # Out of range, a direct cast is undefined; through int64 it wraps as numpy does.
        return x.to(torch.float32).to(torch.int64).to(dtype)
    return x.to(dtype)


def _to_float8(x: Tensor, code: ir.DataType, *, saturate: bool) -> Tensor:
    dtype = torch_dtype(code)
    wide = x.to(torch.float32)
    limit = torch.finfo(dtype).max
    if saturate:
        return wide.clamp(-limit, limit).to(dtype)
    cast_down = wide.to(dtype)
    if code in _HAS_INFINITY:
        return cast_down
    # Torch may saturate here where ONNX asks for NaN.
    rounded = cast_down.to(torch.float32)
    lost = (wide.abs() > limit) & ((rounded.abs() < wide.abs()) | wide.isinf())
    beyond = lost & _rounds_past(wide, dtype)
    return torch.where(beyond, torch.full_like(wide, torch.nan), wide).to(dtype)


def _rounds_past(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether ``x``, rounded to the precision of ``dtype``, exceeds its largest value."""
    largest = torch.finfo(dtype).max
    below = torch.tensor(largest, device=x.device).to(dtype).view(torch.uint8) - 1
    step = largest - below.view(dtype).to(torch.float32)
    return x.abs() >= largest + step / 2


def _to_power_of_two(x: Tensor, round_mode: str) -> Tensor:
    bits = x.to(torch.float32).contiguous().view(torch.int32)
    exponent = (bits >> 23) & 0xFF
    fraction = bits & 0x7FFFFF
    if round_mode == "up":
        exponent = exponent + (fraction > 0)
    elif round_mode == "nearest":
        exponent = exponent + (fraction >= 0x400000)
    finite = exponent.clamp(0, 254)
    return (
        torch.where(x.isnan(), torch.full_like(finite, 255), finite)
        .to(torch.uint8)
        .view(torch.float8_e8m0fnu)
    )


def to_narrow_float(x: Tensor, code: ir.DataType) -> Tensor:
    """``x`` rounded to the values that a float of 4 or 6 bits can hold, in float32."""
    dtype = NARROW_FLOATS[code]
    rounded = x.detach().to(torch.float32).cpu().numpy().astype(dtype).astype(np.float32)
    return torch.from_numpy(rounded).to(x.device)


def _to_narrow_integer(x: Tensor, code: ir.DataType) -> Tensor:
    low, high = INTEGER_RANGES[code]
    whole = x.to(torch.float32) if x.dtype.itemsize == 1 and x.is_floating_point() else x
    wrapped = torch.remainder(whole.to(torch.int64) - low, high - low + 1) + low
    return wrapped.to(torch_dtype(code))
