"""Codes and scales as the matrix that they stand for, and back from its gradient."""

from __future__ import annotations

import torch

from . import code_kernels
from .processor import on_processor
from .scales import grouped, widened

_COMPILED = (torch.int8, torch.int16)  # the loops know no float16


def expand(
    codes: torch.Tensor,
    scales: torch.Tensor,
    group: int,
    places: torch.Tensor,
    matrix: torch.Tensor,
) -> None:
    """Writes what codes stand for into some rows of a matrix.

    Args:
        codes: Int8, int16 or float16, rows x columns.
        scales: Float32, rows x groups.
        group: Columns that share a scale.
        places: Int64: the row of the matrix that each row of codes is.
        matrix: Float32, any rows x columns.
    """
    if on_processor(matrix) and codes.dtype in _COMPILED:
        arrays = (codes.numpy(), scales.numpy(), group, places.numpy(), matrix.numpy())
        code_kernels.expand(*arrays)
        return
    matrix[places] = widened(scales, group, codes.shape[1]) * codes


def group_sums(
    matrix: torch.Tensor, codes: torch.Tensor, group: int, places: torch.Tensor
) -> torch.Tensor:
    """Returns sums of codes times entries of some rows of a matrix: float32, rows x groups.

    Args:
        matrix: Float32, any rows x columns.
        codes: Int8, int16 or float16, rows x columns.
        group: Columns that share a scale.
        places: Int64: the row of the matrix that each row of codes is.
    """
    if not on_processor(matrix) or codes.dtype not in _COMPILED:
        return grouped(matrix[places] * codes, group).sum(2)
    sums = matrix.new_empty(len(codes), -(-codes.shape[1] // group))
    arrays = (codes.numpy(), group, places.numpy(), sums.numpy())
    code_kernels.group_sums(matrix.contiguous().numpy(), *arrays)
    return sums
