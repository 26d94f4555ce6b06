"""Hessians of one use of a unit, of which each serves some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .factor import Factor
from .gptq import Rounded

Key = tuple[str, int]  # a unit's name and which of its uses


@dataclass(frozen=True)
class RowHessians:
    """The Hessians that the rows of a unit round against.

    Attributes:
        matrices: Count x columns x columns.
        owners: For every row, which of the matrices is its own.
    """

    matrices: torch.Tensor
    owners: torch.Tensor

    @classmethod
    def single(cls, matrix: torch.Tensor, rows: int) -> RowHessians:
        """Returns one Hessian for all rows."""
        return cls(matrix[None], torch.zeros(rows, dtype=torch.int64, device=matrix.device))

    def to(self, device: torch.device) -> RowHessians:
        """Returns the same on a device."""
        return RowHessians(self.matrices.to(device), self.owners.to(device))

    def traces(self) -> torch.Tensor:
        """Returns for every row the mean of its Hessian's diagonal."""
        return self.matrices.diagonal(dim1=1, dim2=2).mean(1)[self.owners]

    def trace(self) -> float:
        """Returns the mean of the whole Hessian's diagonal, over rows and columns."""
        return float(self.traces().mean())


@dataclass(frozen=True)
class Part:
    """Rows of a unit that round against the same Hessian.

    Attributes:
        rows: Their indices.
        factor: The Hessian, factorized.
    """

    rows: torch.Tensor
    factor: Factor


def round_parts(
    weight: torch.Tensor,
    rows: torch.Tensor,
    parts: Sequence[Part],
    rounder: Callable[[torch.Tensor, Factor], Rounded],
) -> Rounded:
    """Rounds some rows of a unit, each against its own Hessian.

    Args:
        weight: The whole unit, rows x columns.
        rows: Which rows, in the order of the result.
        parts: All of the unit's rows.
        rounder: Rounds rows against one Hessian.
    """
    if len(parts) == 1:
        return rounder(weight[rows], parts[0].factor)
    codes: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    for part in parts:
        picked = torch.isin(rows, part.rows).nonzero()[:, 0]
        if not len(picked):
            continue
        rounded = rounder(weight[rows[picked]], part.factor)
        if codes is None or scales is None:
            codes = rounded.codes.new_empty(len(rows), weight.shape[1])
            scales = rounded.scales.new_empty(len(rows), rounded.scales.shape[1])
        codes[picked], scales[picked] = rounded.codes, rounded.scales
    assert codes is not None, "every row is in a part"
    assert scales is not None
    return Rounded(codes, scales)
