"""Weights stored in blocks of a few bits, as ONNX Runtime's kernels read them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from ..table import MICROSOFT, lowering
from .indexing import gather


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """The codes in the bytes along the last axis, low bits first."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes: Tensor = torch.bitwise_right_shift(packed.unsqueeze(-1), shifts) & (2**bits - 1)
    return codes.flatten(-2)


@lowering(MICROSOFT, "MatMulNBits", ignores=("accuracy_level", "weight_prepacked"))
def matmul_nbits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    k: int,
    n: int,
    bits: int = 4,
    block_size: int,
) -> Tensor:
    """``a`` times the ``k`` by ``n`` matrix stored row-wise (one row per output) in ``b``."""
    weight = dequantized_rows(
        b, scales, zero_points, g_idx, k=k, n=n, bits=bits, block_size=block_size
    )
    product = a @ weight.to(a.dtype).T
    return product if bias is None else product + bias


def dequantized_rows(
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    *,
    k: int,
    n: int,
    bits: int,
    block_size: int,
) -> Tensor:
    """The ``n`` by ``k`` matrix that MatMulNBits stores, in the type of ``scales``."""
    blocks = -(-k // block_size)
    codes = unpacked(b.reshape(n, blocks, -1), bits).to(scales.dtype)
    step = scales.reshape(n, blocks, 1)
    zero = _zero_points(zero_points, n, blocks, bits, scales)
    if g_idx is None:
        return ((codes - zero) * step).reshape(n, -1)[:, :k]
    group = g_idx.long()
    flat = codes.reshape(n, -1)[:, :k]
    return (flat - zero.expand(n, blocks, 1)[:, group, 0]) * step[:, group, 0]


def _zero_points(
    zero_points: Tensor | None, n: int, blocks: int, bits: int, scales: Tensor
) -> Tensor:
    if zero_points is None:
        return scales.new_full((1, 1, 1), 2 ** (bits - 1))
    if zero_points.dtype is not torch.uint8:
        return zero_points.reshape(n, blocks, 1)
    codes = unpacked(zero_points.reshape(n, -1), bits)[:, :blocks]
    return codes.to(scales.dtype).unsqueeze(-1)


@lowering(MICROSOFT, "GatherBlockQuantized")
def gather_block_quantized(
    data: Tensor,
    indices: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
    input_types: Sequence[int | None],
) -> Tensor:
    """The dequantized slices of ``data`` along ``gather_axis`` at ``indices``."""
    packed = data.dtype is torch.uint8 and input_types[0] != int(ir.DataType.UINT4)
    if packed:
        data = unpacked(data, bits)
        zero_points = None if zero_points is None else unpacked(zero_points, bits)
    rank, axis = data.dim(), quantize_axis % data.dim()
    codes = gather(data, indices, axis=gather_axis)
    moved = axis + indices.dim() - 1 if axis > gather_axis % rank else axis

    def stretched(parameter: Tensor) -> Tensor:
        taken = gather(parameter, indices, axis=gather_axis)
        wide = taken.repeat_interleave(block_size, dim=moved)
        return wide.narrow(moved, 0, codes.shape[moved])

    step = stretched(scales)
    wide = codes.to(scales.dtype)
    if zero_points is not None:
        blocks = zero_points.narrow(axis, 0, scales.shape[axis])
        return (wide - stretched(blocks).to(scales.dtype)) * step
    return (wide - 2 ** (bits - 1) if packed else wide) * step
