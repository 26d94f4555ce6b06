"""Matrix products in floating point."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import widened
from ..table import MICROSOFT, lowering


@lowering("", "MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``."""
    if a.is_floating_point():
        return a @ b
    return (widened(a) @ widened(b)).to(a.dtype)


@lowering("", "Gemm", since=7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    trans_a: int = 0,
    trans_b: int = 0,
) -> Tensor:
    """``alpha A' B' + beta C``."""
    product = (a.T if trans_a else a) @ (b.T if trans_b else b)
    if alpha != 1.0:
        product = product * alpha
    if c is None:
        return product.to(a.dtype)
    return (product + (c if beta == 1.0 else c * beta)).to(a.dtype)


@lowering("", "Einsum")
def einsum(*tensors: Tensor, equation: str) -> Tensor:
    """The sum of products that ``equation`` describes."""
    return torch.einsum(equation.replace(" ", ""), *tensors)


@lowering(MICROSOFT, "FusedMatMul", "TransposeMatMul")
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    trans_a: int = 0,
    trans_b: int = 0,
    trans_batch_a: int = 0,
    trans_batch_b: int = 0,
) -> Tensor:
    """``alpha A' B'``, where the leading axes may be turned as well."""
    left = _turned(a, bool(trans_a), bool(trans_batch_a))
    right = _turned(b, bool(trans_b), bool(trans_batch_b))
    return left @ right * alpha


def _turned(x: Tensor, swap: bool, batch: bool) -> Tensor:
    if x.dim() < 2:
        return x
    if batch:
        x = x.movedim(0, -2)
    return x.mT if swap else x


@lowering(MICROSOFT, "GemmFastGelu")
def gemm_fast_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``gelu(x @ weight + bias)`` by tanh."""
    product = x @ weight
    product = product if bias is None else product + bias
    return torch.nn.functional.gelu(product, approximate="tanh")
