"""ONNX element types in torch.

Types narrower than a byte have no torch dtype: int4, uint4, int2 and uint2 values live in
int8 or uint8 tensors, float4 and float6 values in float32 ones.
"""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from ...ir.errors import InputError

TORCH_DTYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT8E8M0: torch.float8_e8m0fnu,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.FLOAT4E2M1: torch.float32,
    ir.DataType.FLOAT6E2M3: torch.float32,
    ir.DataType.FLOAT6E3M2: torch.float32,
}

INTEGER_RANGES: dict[ir.DataType, tuple[int, int]] = {
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
}

NARROW_FLOATS: dict[ir.DataType, npt.DTypeLike] = {
    ir.DataType.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
    ir.DataType.FLOAT6E2M3: ml_dtypes.float6_e2m3fn,
    ir.DataType.FLOAT6E3M2: ml_dtypes.float6_e3m2fn,
}

_WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)

# numpy has these only through ml_dtypes, torch natively: same bits, read as integers.
_SAME_BITS: dict[ir.DataType, npt.DTypeLike] = {
    ir.DataType.BFLOAT16: np.uint16,
    ir.DataType.FLOAT8E4M3FN: np.uint8,
    ir.DataType.FLOAT8E4M3FNUZ: np.uint8,
    ir.DataType.FLOAT8E5M2: np.uint8,
    ir.DataType.FLOAT8E5M2FNUZ: np.uint8,
    ir.DataType.FLOAT8E8M0: np.uint8,
}

_CARRIERS: dict[ir.DataType, npt.DTypeLike] = {
    ir.DataType.INT4: np.int8,
    ir.DataType.UINT4: np.uint8,
    ir.DataType.INT2: np.int8,
    ir.DataType.UINT2: np.uint8,
    ir.DataType.FLOAT4E2M1: np.float32,
    ir.DataType.FLOAT6E2M3: np.float32,
    ir.DataType.FLOAT6E3M2: np.float32,
}


def torch_dtype(code: int) -> torch.dtype:
    """The torch dtype that holds values of the ONNX element type ``code``."""
    dtype = TORCH_DTYPES.get(ir.DataType(code))
    if dtype is None:
        raise InputError(f"element type {ir.DataType(code).name} has no torch equivalent")
    return dtype


def onnx_dtype(dtype: torch.dtype) -> ir.DataType:
    """The ONNX element type that ``dtype`` holds when nothing narrower is known."""
    return next(code for code, known in TORCH_DTYPES.items() if known is dtype)


def tensor_from_onnx(constant: ir.TensorProtocol) -> Tensor:
    """A tensor over the memory of ``constant``: nothing is copied unless it must be widened.

    The result may lie in a read-only map of a file: replace it, never write into it.
    """
    torch_dtype(constant.dtype)
    array = constant.numpy()
    if constant.dtype in _CARRIERS:
        return torch.from_numpy(array.astype(_CARRIERS[constant.dtype]))
    bits = _SAME_BITS.get(constant.dtype)
    if bits is not None:
        return _borrow(array.view(bits)).view(torch_dtype(constant.dtype))
    return _borrow(array)


def _borrow(array: npt.NDArray[np.generic]) -> Tensor:
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def widened(x: Tensor) -> Tensor:
    """``x``, or the int64 tensor with its values if torch hardly computes in its dtype."""
    return x.to(torch.int64) if x.dtype in _WIDE_UNSIGNED else x
