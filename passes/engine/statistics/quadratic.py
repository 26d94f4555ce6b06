"""A unit's predicted divergence: the quadratic form that calibration left in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ....ir import (
    ArrayStore,
    LocalHessian,
    OutlierColumns,
    TensorStats,
    Unit,
    need_note,
    note_of,
)
from ..execution.devices import CPU
from ..numerics.factor import Factor, factorize
from ..numerics.gptq import Rounded
from ..numerics.outlier_split import OutlierSplit
from ..numerics.row_errors import row_errors
from ..numerics.row_hessians import Key, Part, RowHessians
from ..numerics.shrinkage import shrunk
from .moved import read_moved

# Measured on held-out Hessians: 0.01 fits the calibration text, and not the next one.
DAMPING = 0.1


@dataclass(frozen=True)
class Quadratic:
    """``1/2 sum_t rows_t[n] d^T hessian_t d``: what storing row n with error d costs in nats.

    Attributes:
        rows: One vector for each term.
        hessians: One matrix for each term, or a vector where it is diagonal.
        activation: For each product term the variance of the kernel's activation rounding.
        local: For each term what to round against instead of its Hessian; empty for none.
        kept: Columns that are not rounded; None for none.
        scarce: Whether there were fewer tokens than columns, so that losses are noisy.
    """

    rows: tuple[torch.Tensor, ...]
    hessians: tuple[torch.Tensor, ...]
    activation: tuple[torch.Tensor | None, ...]
    local: tuple[RowHessians | None, ...] = ()
    kept: OutlierSplit | None = None
    scarce: bool = False

    @classmethod
    def of(cls, unit: Unit, arrays: ArrayStore, device: str = CPU) -> Quadratic:
        """Reads the terms of ``unit``, all of whose columns are to be rounded.

        Hessians that fewer tokens than columns gave are shrunk towards their diagonals.

        Args:
            unit: The unit.
            arrays: What calibration left of it.
            device: Where the terms go.
        """
        stats = need_note(unit.notes, TensorStats)

        def read(at: int, what: str) -> torch.Tensor:
            return torch.from_numpy(read_moved(unit, arrays, at, what)).to(device)

        def hessian(at: int) -> torch.Tensor:
            if not unit.uses[at].takes_floats:
                return shrunk(read(at, "hessian"), stats.tokens)
            known = f"{unit.name}/{at}/hessian" in arrays
            found = read(at, "hessian") if known else None
            return _normalized(found, unit, stats.tokens).to(device)

        terms = range(stats.terms)
        return cls(
            tuple(read(at, "rows") for at in terms),
            tuple(hessian(at) for at in terms),
            tuple(
                read(at, "activation") if unit.uses[at].kind == "product" else None
                for at in terms
            ),
            _read_local(unit, arrays, stats.tokens, device),
            scarce=stats.tokens < unit.shape[1],
        )

    def against(self, found: Mapping[Key, RowHessians], unit: Unit) -> Quadratic:
        """Returns the same losses, rounded against other Hessians where there are any."""
        tokens = need_note(unit.notes, TensorStats).tokens
        others = (found.get((unit.name, at)) for at in range(len(self.rows)))
        device = self.rows[0].device
        local = tuple(
            _shrunk(one.to(device), tokens) if one is not None else None for one in others
        )
        return replace(self, local=local) if any(local) else self

    def keeping(self, columns: np.ndarray) -> Quadratic:
        """Returns the same losses where some columns, if any, stay in 16 bits."""
        if not len(columns):
            return replace(self, kept=None)
        places = torch.from_numpy(columns.astype(np.int64)).to(self.rows[0].device)
        kept = OutlierSplit(places, DAMPING)
        return replace(self, kept=kept)

    def kept_columns(self) -> torch.Tensor:
        """Returns the columns that are not rounded, int64."""
        if self.kept is None:
            return torch.zeros(0, dtype=torch.int64, device=self.rows[0].device)
        return self.kept.columns

    def hidden(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the part of a weight that is rounded."""
        return weight if self.kept is None else self.kept.hidden(weight)

    def completed(self, exact: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        """Returns a rounded weight together with the columns that were kept."""
        if self.kept is None:
            return stored
        return self.kept.completed(exact, stored, self.mixed())

    def parts(self) -> list[Part]:
        """Returns the rows by the Hessian that they round against."""
        rows = len(self.rows[0])
        if not any(one is not None for one in self.local):
            return [Part(torch.arange(rows, device=self.rows[0].device), self.factor())]
        nobody = torch.zeros_like(self.rows[0], dtype=torch.int64)
        owners = [nobody if one is None else one.owners for one in self.local]
        together = list(zip(*(one.cpu().tolist() for one in owners), strict=True))
        kinds = {kind: at for at, kind in enumerate(dict.fromkeys(together))}
        kind_of = torch.tensor([kinds[kind] for kind in together]).to(self.rows[0].device)
        return [
            Part((kind_of == at).nonzero()[:, 0], self._factorized(self._local(kind)))
            for kind, at in kinds.items()
        ]

    def _local(self, kind: tuple[int, ...]) -> torch.Tensor:
        """Returns the local Hessians of some rows, terms weighted as in ``factor``."""
        weights = [float(rows.mean()) for rows in self.rows]
        if len(weights) == 1 or not sum(weights) > 0:
            weights = [1.0] * len(weights)
        terms = zip(weights, self.hessians, self.local, kind, strict=True)
        return torch.stack([w * _scaled(h, local, at) for w, h, local, at in terms]).sum(0)

    def mixed(self) -> torch.Tensor:
        """Returns one Hessian for all terms, which count by their mean importance."""
        weights = [float(rows.mean()) for rows in self.rows]
        total = sum(weights)
        if not total > 0:
            return sum(self.hessians, torch.zeros_like(self.hessians[0]))
        return sum(
            (h * (w / total) for h, w in zip(self.hessians, weights, strict=True)),
            torch.zeros_like(self.hessians[0]),
        )

    def factor(self, columns: slice | None = None) -> Factor:
        """Returns the Hessian to round against.

        Args:
            columns: Those that are rounded by themselves; all by default.
        """
        if columns is None:
            return self._factor
        hessian = self.mixed()
        return self._factorized(hessian[(columns,) * hessian.ndim])

    @cached_property
    def _factor(self) -> Factor:
        return self._factorized(self.mixed())

    def _factorized(self, hessian: torch.Tensor) -> Factor:
        reduced = hessian if self.kept is None else self.kept.reduced(hessian)
        return factorize(reduced, DAMPING)

    def energy(self) -> torch.Tensor:
        """Returns ``E[c_t x_j^2]``, the squared norm of the activations of every column."""
        mixed = self.mixed()
        return mixed if mixed.ndim == 1 else mixed.diagonal().clone()

    def row_importance(self) -> torch.Tensor:
        """Returns what a squared error costs in each row, summed over the terms."""
        return sum(
            (
                rows * (hessian if hessian.ndim == 1 else hessian.diagonal()).mean()
                for rows, hessian in zip(self.rows, self.hessians, strict=True)
            ),
            torch.zeros_like(self.rows[0]),
        )

    def loss(self, exact: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        """Returns the predicted divergence of every row, in nats per token."""
        total = exact.new_zeros(len(exact))
        for rows, hessian in zip(self.rows, self.hessians, strict=True):
            total += 0.5 * rows * row_errors(exact, stored, hessian)
        return total

    def loss_of(
        self, exact: torch.Tensor, rounded: Rounded, group: int, parts: Sequence[Part]
    ) -> torch.Tensor:
        """Returns the same of what was rounded against ``parts()``.

        What rounding has paid under its damped Hessian is the loss, but for the damping: of
        errors ``d`` the Hessian itself asks ``damping |d|^2`` less, and where channels are
        kept, which make up by ``d_K``, ``ridge |d_K|^2`` less.

        Args:
            exact: Float32, rows x columns.
            rounded: Its rounded part.
            group: Columns that share a scale.
            parts: What it was rounded against.
        """
        stored = self.completed(exact, rounded.dequantize(group))
        otherwise = len(self.hessians) > 1 or any(one is not None for one in self.local)
        if rounded.paid is None or otherwise:
            return self.loss(exact, stored)
        hessian, error = self.hessians[0], (stored - exact).square_()
        damping = exact.new_full((exact.shape[1],), parts[0].factor.damping)
        if self.kept is not None:
            damping[self.kept.columns] = self.kept.ridge(hessian)
        return 0.5 * self.rows[0] * (rounded.paid - error @ damping).clamp_min_(0)

    def kernel_loss(self, exact: torch.Tensor) -> float:
        """Returns what rounding the activations to int8 costs, which no option changes."""
        return float(self.kernel_losses(exact).sum())

    def kernel_losses(self, exact: torch.Tensor) -> torch.Tensor:
        """Returns the same for every row."""
        total, weights = exact.new_zeros(len(exact)), self.hidden(exact).square()
        for rows, variance in zip(self.rows, self.activation, strict=True):
            if variance is not None:
                total += 0.5 * rows * (weights @ variance)
        return total


def outlier_columns(unit: Unit, arrays: ArrayStore) -> np.ndarray:
    """Returns the input channels of ``unit`` that stay in 16 bits, ascending."""
    if note_of(unit.notes, OutlierColumns) is None:
        return np.zeros(0, dtype=np.int32)
    return arrays.get(f"{unit.name}/outliers/columns")


def _normalized(hessian: torch.Tensor | None, unit: Unit, tokens: int) -> torch.Tensor:
    """Returns the Hessian of an array with a mean diagonal of 1; the identity without any."""
    mean = 0.0 if hessian is None else float(hessian.diagonal().mean())
    if hessian is None or not mean > 0:
        return torch.ones(unit.shape[1])
    return shrunk(hessian / mean, tokens)


def _scaled(hessian: torch.Tensor, local: RowHessians | None, owner: int) -> torch.Tensor:
    """Returns a term's local Hessian, as large on average as what calibration found."""
    if local is None:
        return torch.diag(hessian) if hessian.ndim == 1 else hessian
    mean = local.trace()
    wanted = float((hessian if hessian.ndim == 1 else hessian.diagonal()).mean())
    return local.matrices[owner] * (wanted / mean if mean > 0 else 1.0)


def _shrunk(local: RowHessians, tokens: int) -> RowHessians:
    """Returns Hessians of rows without the noise of fewer tokens than columns."""
    if tokens >= local.matrices.shape[-1]:
        return local
    matrices = torch.stack([shrunk(one, tokens) for one in local.matrices])
    return replace(local, matrices=matrices)


def _read_local(
    unit: Unit, arrays: ArrayStore, tokens: int, device: str
) -> tuple[RowHessians | None, ...]:
    """Returns what ``attention-hessians`` left for a unit."""
    if note_of(unit.notes, LocalHessian) is None:
        return ()

    def read(at: int) -> RowHessians:
        owners = torch.from_numpy(read_moved(unit, arrays, at, "owners")).long().to(device)
        matrices = torch.from_numpy(read_moved(unit, arrays, at, "local")).to(device)
        return _shrunk(RowHessians(matrices, owners), tokens)

    return tuple(
        read(at) if f"{unit.name}/{at}/local" in arrays else None
        for at in range(len(unit.uses))
    )
