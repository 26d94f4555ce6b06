"""QuantizeLinear and DequantizeLinear as TensorRT's builder takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from ..view import (
    FOUR_BITS,
    TWO_BITS,
    UNSIGNED,
    Broken,
    Check,
    View,
    given,
    maker,
    readers,
    whole,
)

_BOTH = ("QuantizeLinear", "DequantizeLinear")
_INT4 = {ir.DataType.INT4, ir.DataType.UINT4}
_INT4_BLOCKS = (64, 128)
_FLOAT8 = {
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
}
_BLOCK_FLOATS = {ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN}  # NVFP4 and MXFP8
_MULTIPLIES = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_RECTIFIERS = ("Relu", "Clip", "LeakyRelu")


def _zero_point(view: View) -> Broken:
    for node in view.standard(*_BOTH):
        value = given(node, 2)
        if value is None:
            continue
        zero = view.numbers(value)
        if zero is None and value in view.static:
            continue  # made of constants, but not told without computing
        if zero is None:
            yield node, "its zero point is computed when the model runs"
        elif zero.any():
            yield node, f"zero point {zero[zero != 0].ravel()[0]:g}"


def _unsigned_codes(view: View) -> Broken:
    for node in view.standard(*_BOTH):
        dtype = view.codes_type(node)
        if dtype in UNSIGNED and not _is_default(node):
            yield node, f"codes of {dtype.name.lower()}"


def _default_codes(view: View) -> Broken:
    for node in view.standard("QuantizeLinear"):
        if _is_default(node):
            yield node, "it has no zero point, which makes its codes uint8"


def _is_default(node: ir.Node) -> bool:
    typed = given(node, 2) is not None or whole(node, "output_dtype", 0) != 0
    return node.op_type == "QuantizeLinear" and not typed


def _scale_not_positive(view: View) -> Broken:
    for node in view.standard(*_BOTH):
        scale = view.numbers(given(node, 1))
        if scale is not None and (scale <= 0).any():
            yield node, f"{int((scale <= 0).sum())} of {scale.size} scales are not above 0"


def _scale_not_constant(view: View) -> Broken:
    for node in view.standard(*_BOTH):
        blocked = whole(node, "block_size", 0) and view.codes_type(node) in _BLOCK_FLOATS
        if given(node, 1) not in view.static and not blocked:
            yield node, "its scale is computed when the model runs"


def _bias_of_int32(view: View) -> Broken:
    for node in view.standard("DequantizeLinear"):
        if view.codes_type(node) == ir.DataType.INT32:
            yield node, "codes of int32"


def _two_bits(view: View) -> Broken:
    for node in view.standard(*_BOTH):
        dtype = view.codes_type(node)
        if dtype in TWO_BITS:
            yield node, f"codes of {dtype.name.lower()}"


def _float8_kind(view: View) -> Broken:
    for node in view.standard(*_BOTH):
        dtype = view.codes_type(node)
        if dtype in _FLOAT8:
            yield node, f"codes of {dtype.name.lower()}"


def _of_int4(view: View) -> Iterator[tuple[ir.Node, tuple[int, ...]]]:
    for node in view.standard("DequantizeLinear"):
        dims = view.dims(node.inputs[0])
        if view.codes_type(node) in _INT4 and dims is not None:
            yield node, dims


def _int4_rank(view: View) -> Broken:
    for node, dims in _of_int4(view):
        if len(dims) != 2:
            yield node, f"a weight of {list(dims)}"


def _int4_odd(view: View) -> Broken:
    for node, dims in _of_int4(view):
        count = 1
        for dim in dims:
            count *= dim
        if count % 2:
            yield node, f"{count} codes in {list(dims)}"


def _int4_block(view: View) -> Broken:
    for node, _ in _of_int4(view):
        block = whole(node, "block_size", 0)
        if block not in _INT4_BLOCKS:
            yield node, f"blocks of {block}" if block else "no blocks"


def _block_axis(view: View) -> Broken:
    for node in view.standard(*_BOTH):
        dims = view.dims(given(node, 0))
        if not whole(node, "block_size", 0) or dims is None:
            continue
        axis = whole(node, "axis", 1) % max(len(dims), 1)
        if axis < len(dims) - 2:
            yield node, f"blocks along axis {axis} of {len(dims)}"


def _shared_dequantizer(view: View) -> Broken:
    for node in view.standard("DequantizeLinear"):
        count = len(readers(node.outputs[0]))
        if count > 1:
            yield node, f"{count} nodes read it"


def _rounded_before_rectifier(view: View) -> Broken:
    for node in view.standard(*_RECTIFIERS):
        after = maker(given(node, 0), "DequantizeLinear")
        before = maker(after.inputs[0], "QuantizeLinear") if after is not None else None
        made = maker(before.inputs[0], *_MULTIPLIES, "Add") if before is not None else None
        if made is not None:
            yield node, f"what {made.name!r} makes is rounded before it"


def _channelwise_activation(view: View) -> Broken:
    for node in view.standard("QuantizeLinear"):
        dims = view.dims(given(node, 1))
        if given(node, 0) not in view.static and dims and dims != (1,):
            yield node, f"scales of {list(dims)} for an activation"


def _half_quantized(view: View) -> Broken:
    """A product of INT8 weights by floats: only INT4 has such kernels."""
    for node in view.standard(*_MULTIPLIES):
        made = [maker(given(node, at), "DequantizeLinear") for at in (0, 1)]
        weights = [one for one in made if one is not None and view.is_weight(one)]
        wide = [one for one in weights if view.codes_type(one) not in FOUR_BITS]
        if wide and any(one is None for one in made):
            yield (
                node,
                f"{wide[0].name!r} gives it a weight of codes, its other input is float",
            )


CHECKS: Mapping[str, Check] = {
    "trt-zero-point": _zero_point,
    "trt-unsigned-codes": _unsigned_codes,
    "trt-default-codes": _default_codes,
    "trt-scale-not-positive": _scale_not_positive,
    "trt-scale-not-constant": _scale_not_constant,
    "trt-bias-of-int32": _bias_of_int32,
    "trt-2-bits": _two_bits,
    "trt-float8-kind": _float8_kind,
    "trt-int4-rank": _int4_rank,
    "trt-int4-odd": _int4_odd,
    "trt-int4-block": _int4_block,
    "trt-block-axis": _block_axis,
    "trt-shared-dequantizer": _shared_dequantizer,
    "trt-rounded-before-rectifier": _rounded_before_rectifier,
    "trt-channelwise-activation": _channelwise_activation,
    "trt-half-quantized": _half_quantized,
}
