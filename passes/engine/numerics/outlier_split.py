"""Columns that stay in 16 bits, and what rounding the others then is about.

With columns K kept and R rounded, the kept ones make up for an error ``d_R`` of the others by
``d_K = -d_R H_RK H_KK^-1``, after which it costs ``d_R S d_R^T`` with the Schur complement
``S = H_RR - H_RK H_KK^-1 H_KR``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .doubles import with_doubles
from .gptq import as_half


@dataclass(frozen=True)
class OutlierSplit:
    """Which columns of a weight are kept.

    Attributes:
        columns: Int64, their indices.
        damping: Share of the Hessian's mean diagonal that is added before it is inverted.
    """

    columns: torch.Tensor
    damping: float

    def hidden(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the weight with zeros in the kept columns, whose codes are zero."""
        return weight.index_fill(1, self.columns, 0.0)

    def reduced(self, hessian: torch.Tensor) -> torch.Tensor:
        """Returns what errors of the other columns cost: S, with zeros where columns are kept.

        Args:
            hessian: Columns x columns, or the diagonal of a diagonal one.
        """
        if hessian.ndim == 1:
            return hessian.index_fill(0, self.columns, 0.0)
        across = hessian[self.columns]
        reduced = hessian - across.T @ self._made_up(hessian)
        reduced.index_fill_(0, self.columns, 0.0).index_fill_(1, self.columns, 0.0)
        return (reduced + reduced.T) / 2

    def completed(
        self, exact: torch.Tensor, stored: torch.Tensor, hessian: torch.Tensor
    ) -> torch.Tensor:
        """Returns ``stored`` with the kept columns, which make up for errors of the others.

        Args:
            exact: Rows x columns.
            stored: Rows x columns; its kept columns are ignored.
            hessian: What ``reduced`` was given.
        """
        result = stored.clone()
        kept = exact[:, self.columns]
        if hessian.ndim == 2:
            kept = kept - self.hidden(stored - exact) @ self._made_up(hessian).T
        result[:, self.columns] = as_half(kept)
        return result

    def ridge(self, hessian: torch.Tensor) -> float:
        """Returns what is added to the Hessian's diagonal before it is inverted."""
        # Inputs that are always zero make any error free, and nothing has to be made up for.
        mean = float(hessian.diagonal().mean())
        return mean * self.damping if mean > 0 else 1.0

    def _made_up(self, hessian: torch.Tensor) -> torch.Tensor:
        """Returns ``H_KK^-1 H_K*``, kept columns x columns."""
        device, hessian = hessian.device, with_doubles(hessian)
        columns = self.columns.to(hessian.device)
        across = hessian[columns].double()
        corner = across[:, columns]
        eye = torch.eye(len(corner), dtype=torch.float64, device=corner.device)
        solved: torch.Tensor = torch.linalg.solve(corner + eye * self.ridge(hessian), across)
        return solved.float().to(device)
