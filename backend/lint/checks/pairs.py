"""QuantizeLinear and DequantizeLinear, whatever runs them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..view import FOUR_BITS, TWO_BITS, Broken, Check, View, given, maker, whole

_BOTH = ("QuantizeLinear", "DequantizeLinear")
_FLOAT8 = {
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
}
_SINCE = {  # the opset that a type came with, and the IR version
    **dict.fromkeys(_FLOAT8, (19, 9)),
    **dict.fromkeys(FOUR_BITS, (21, 10)),
    ir.DataType.FLOAT4E2M1: (23, 11),
    **dict.fromkeys(TWO_BITS, (25, 13)),
}


def _scale_not_finite(view: View) -> Broken:
    for node in view.standard(*_BOTH):
        scale = view.numbers(given(node, 1))
        if scale is not None and not np.isfinite(scale).all():
            yield node, f"{int((~np.isfinite(scale)).sum())} of {scale.size} scales"


def _scale_of_zero(view: View) -> Broken:
    for node in view.standard(*_BOTH):
        scale = view.numbers(given(node, 1))
        if scale is not None and (scale == 0).any():
            yield node, f"{int((scale == 0).sum())} of {scale.size} scales"


def _scale_count(view: View) -> Broken:
    """One scale for each entry along an axis: there must be as many."""
    for node in view.standard(*_BOTH):
        dims, scale = view.dims(given(node, 0)), view.dims(given(node, 1))
        blocked = whole(node, "block_size", 0)
        if not dims or scale is None or len(scale) != 1 or scale == (1,) or blocked:
            continue
        axis = whole(node, "axis", 1)
        if not -len(dims) <= axis < len(dims):
            yield node, f"axis {axis} of {len(dims)} axes"
        elif scale[0] != dims[axis]:
            yield node, f"{scale[0]} scales for {dims[axis]} entries along axis {axis}"


def _block_shape(view: View) -> Broken:
    for node in view.standard(*_BOTH):
        block, axis = (
            whole(node, "block_size", 0),
            whole(node, "axis", 1),
        )
        dims, scale = view.dims(given(node, 0)), view.dims(given(node, 1))
        if not block or not dims or scale is None:
            continue
        if not -len(dims) <= axis < len(dims):
            yield node, f"axis {axis} of {len(dims)} axes"
            continue
        wanted = list(dims)
        wanted[axis] = -(-dims[axis] // block)
        if list(scale) != wanted:
            yield node, f"scales of {list(scale)}, blocks of {block} need {wanted}"


def _types_too_new(view: View) -> Broken:
    """Types of 2 and 4 bits came with an opset and a file format."""
    for node in view.standard(*_BOTH):
        dtype = view.codes_type(node)
        if dtype in _SINCE and view.opset < _SINCE[dtype][0]:
            wanted = _SINCE[dtype][0]
            yield node, f"{dtype.name.lower()} needs opset {wanted}, not {view.opset}"


def _file_too_old(view: View) -> Broken:
    wanted = file_version(view)
    if view.model.ir_version < wanted:
        yield None, f"codes need IR version {wanted}, the file says {view.model.ir_version}"


def file_version(view: View) -> int:
    """Returns the version of the file format that the types of all constants need."""
    found = {tensor.dtype for tensor in view.static.constants.values()} & set(_SINCE)
    return max((_SINCE[dtype][1] for dtype in found), default=0)


def _floats_stored(view: View) -> Broken:
    for node in view.standard("QuantizeLinear"):
        value = given(node, 0)
        if value in view.static.constants and value is not None:
            yield node, f"{value.name!r} of {list(view.dims(value) or ())}"


def _pair_that_changes_nothing(view: View) -> Broken:
    for node in view.standard("QuantizeLinear"):
        before = maker(given(node, 0), "DequantizeLinear")
        if before is not None and _same_grid(view, before, node):
            yield node, f"it rounds what {before.name!r} makes to the same codes"


def _same_grid(view: View, dequantize: ir.Node, quantize: ir.Node) -> bool:
    if view.codes_type(dequantize) != view.codes_type(quantize):
        return False
    settings = [
        (whole(one, "axis", 1), whole(one, "block_size", 0)) for one in (dequantize, quantize)
    ]
    arrays = [[view.array(given(one, at)) for at in (1, 2)] for one in (dequantize, quantize)]
    (scale, zero), (other, other_zero) = arrays
    if settings[0] != settings[1] or scale is None or other is None:
        return False
    known = [view.knows(given(one, 2)) for one in (dequantize, quantize)]
    same_zero = all(known) and np.array_equal(_zeros(zero), _zeros(other_zero))
    return same_zero and np.array_equal(scale, other) and bool((scale > 0).all())


def _zeros(array: np.ndarray | None) -> np.ndarray:
    return np.zeros(1) if array is None or not array.any() else array.astype(np.float64)


CHECKS: Mapping[str, Check] = {
    "scale-not-finite": _scale_not_finite,
    "scale-of-zero": _scale_of_zero,
    "scale-count": _scale_count,
    "block-shape": _block_shape,
    "types-too-new": _types_too_new,
    "file-too-old": _file_too_old,
    "floats-stored": _floats_stored,
    "pair-that-changes-nothing": _pair_that_changes_nothing,
}
