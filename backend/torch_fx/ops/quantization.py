"""Quantizing, dequantizing and products of quantized tensors."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from ..dtypes import INTEGER_RANGES, onnx_dtype, torch_dtype, widened
from ..table import MICROSOFT, lowering
from .casting import cast
from .convolution import convolution


def spread(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point shaped to broadcast over ``x``."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    if block_size:
        repeated = parameter.repeat_interleave(block_size, dim=axis)
        return repeated.narrow(axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


@lowering("", "QuantizeLinear")
@lowering(MICROSOFT, "QuantizeLinear")
def quantize_linear(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    input_types: Sequence[int | None],
) -> Tensor:
    """``x / y_scale`` rounded, moved by ``y_zero_point`` and kept in range."""
    code = _quantized_type(y_zero_point, output_dtype, input_types)
    scale = spread(y_scale, x, axis, block_size)
    if precision:
        x, scale = x.to(torch_dtype(precision)), scale.to(torch_dtype(precision))
    elif not x.is_floating_point():
        x = x.to(scale.dtype)
    ratio = x / scale
    limits = INTEGER_RANGES.get(code)
    if limits is None:
        return cast(ratio, to=code, saturate=saturate)
    codes = torch.round(ratio.to(torch.float32))
    if y_zero_point is not None:
        codes = codes + spread(widened(y_zero_point), x, axis, block_size)
    return codes.clamp(*limits).to(torch_dtype(code))


def _quantized_type(
    zero_point: Tensor | None, output_dtype: int, input_types: Sequence[int | None]
) -> ir.DataType:
    if output_dtype:
        return ir.DataType(output_dtype)
    if zero_point is None:
        return ir.DataType.UINT8
    return ir.DataType(input_types[2] or onnx_dtype(zero_point.dtype))


@lowering("", "DequantizeLinear")
@lowering(MICROSOFT, "DequantizeLinear")
def dequantize_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """``(x - x_zero_point) * x_scale``."""
    codes = x.to(torch.float32)
    if x_zero_point is not None:
        codes = codes - spread(x_zero_point.to(torch.float32), x, axis, block_size)
    result = codes * spread(x_scale.to(torch.float32), x, axis, block_size)
    return result.to(torch_dtype(output_dtype) if output_dtype else x_scale.dtype)


@lowering("", "DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` in 8 bits over its own range; returns codes, scale and zero point."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = torch.where(high == low, torch.ones_like(low), high - low) / 255
    zero = torch.round((-low / scale).clamp(0, 255))
    codes = (torch.round(x / scale) + zero).clamp(0, 255)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)


def _centered(x: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """``x - zero_point`` in float64, where 32-bit integer products are exact."""
    wide = x.to(torch.float64)
    if zero_point is None:
        return wide
    zero = zero_point.to(torch.float64)
    return wide - (spread(zero, x, axis, 0) if zero.dim() <= 1 else zero)


@lowering("", "MatMulInteger")
def matmul_integer(
    a: Tensor,
    b: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
) -> Tensor:
    """The product of the codes less their zero points, in 32 bits."""
    left, right = _centered(a, a_zero_point, -2), _centered(b, b_zero_point, -1)
    return (left @ right).to(torch.int32)


@lowering(MICROSOFT, "MatMulIntegerToFloat")
def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The product of two quantized matrices, dequantized."""
    product = _centered(a, a_zero_point, -2) @ _centered(b, b_zero_point, -1)
    result = product.to(a_scale.dtype) * a_scale * b_scale
    return result if bias is None else result + bias


@lowering(MICROSOFT, "DynamicQuantizeMatMul")
def dynamic_quantize_matmul(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``a``, quantized over its own range, times a quantized matrix."""
    codes, scale, zero = dynamic_quantize_linear(a)
    return matmul_integer_to_float(codes, b, scale, b_scale, zero, b_zero_point, bias)


def _requantized(product: Tensor, factor: Tensor, zero_point: Tensor) -> Tensor:
    limits = torch.iinfo(zero_point.dtype)
    codes = torch.round(product * factor) + zero_point.to(product.dtype)
    return codes.clamp(limits.min, limits.max).to(zero_point.dtype)


@lowering("", "QLinearMatMul")
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    """The product of two quantized matrices, quantized again."""
    product = _centered(a, a_zero_point, -2) @ _centered(b, b_zero_point, -1)
    rows = spread(a_scale.double(), a, -2, 0) if a_scale.dim() <= 1 else a_scale.double()
    factor = rows * b_scale.double() / y_scale.double()
    return _requantized(product, factor, y_zero_point)


@lowering("", "ConvInteger", ignores=("kernel_shape",))
def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The convolution of the codes less their zero points, in 32 bits."""
    return convolution(
        _centered(x, x_zero_point, 1),
        _centered(weight, w_zero_point, 0),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    ).to(torch.int32)


@lowering("", "QLinearConv", ignores=("kernel_shape",))
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The convolution of two quantized tensors, quantized again."""
    product = convolution(
        _centered(x, x_zero_point, 1),
        _centered(weight, w_zero_point, 0),
        None if bias is None else bias.to(torch.float64),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    factor = x_scale.double() * w_scale.double() / y_scale.double()
    return _requantized(product, spread(factor, product, 1, 0), y_zero_point)
