"""A unit's predicted divergence: the quadratic form that calibration left in the store."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...ir import ArrayStore, TensorStats, Unit, need_note
from ..numerics.rounding import Factor, factorize, row_errors
from ..rewriting.moved import read_moved

# Measured on held-out Hessians: 0.01 fits the calibration text, and not the next one.
DAMPING = 0.1


@dataclass(frozen=True)
class Quadratic:
    """``1/2 sum_t rows_t[n] d^T hessian_t d``: what storing row n with error d costs in nats.

    Attributes:
        rows: One vector for each term.
        hessians: One matrix for each term, or a vector where it is diagonal.
        activation: For each product term the variance of the kernel's activation rounding.
    """

    rows: tuple[torch.Tensor, ...]
    hessians: tuple[torch.Tensor, ...]
    activation: tuple[torch.Tensor | None, ...]

    @classmethod
    def of(cls, unit: Unit, arrays: ArrayStore) -> Quadratic:
        """Reads the terms of ``unit``."""
        stats = need_note(unit.anchor, TensorStats)

        def read(at: int, what: str) -> torch.Tensor:
            if what == "hessian" and unit.uses[at].kind == "conv":
                return torch.ones(unit.shape[1])
            return torch.from_numpy(read_moved(unit, arrays, at, what))

        terms = range(stats.terms)
        return cls(
            tuple(read(at, "rows") for at in terms),
            tuple(read(at, "hessian") for at in terms),
            tuple(
                read(at, "activation") if unit.uses[at].kind == "product" else None
                for at in terms
            ),
        )

    def factor(self) -> Factor:
        """Returns the Hessian to round against: terms weighted by their mean importance."""
        weights = [float(rows.mean()) for rows in self.rows]
        total = sum(weights)
        if not total > 0:
            return factorize(sum(self.hessians, torch.zeros_like(self.hessians[0])), DAMPING)
        mixed = sum(
            (h * (w / total) for h, w in zip(self.hessians, weights, strict=True)),
            torch.zeros_like(self.hessians[0]),
        )
        return factorize(mixed, DAMPING)

    def loss(self, exact: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        """Returns the predicted divergence of every row, in nats per token."""
        total = torch.zeros(len(exact))
        for rows, hessian in zip(self.rows, self.hessians, strict=True):
            total += 0.5 * rows * row_errors(exact, stored, hessian)
        return total

    def kernel_loss(self, exact: torch.Tensor) -> float:
        """Returns what rounding the activations to int8 costs, which no option changes."""
        total = 0.0
        for rows, variance in zip(self.rows, self.activation, strict=True):
            if variance is not None:
                total += float((0.5 * rows * (exact.square() @ variance)).sum())
        return total
