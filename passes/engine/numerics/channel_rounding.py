"""Rounding a weight whose input channels have levels of their own.

A weight of row n in column j becomes ``levels_j[index] * scale(n, j)``. The levels are free
(then all scales are one), integers of a grid, or all integers of a width. Rounding goes column
by column, with or without letting later columns absorb the error of each (GPTQ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .codebooks import free_levels, grid_levels
from .factor import Factor
from .scales import search_scales

_SMALLEST_SCALE = 2.0**-14  # the smallest normal float16
_COLUMNS_AT_ONCE = 64
_REFITS = 2  # of the scales of a grid, each time with new levels


@dataclass(frozen=True)
class Class:
    """Columns whose indices have the same width.

    Attributes:
        bits: Width of an index.
        columns: Which columns of the weight, int64.
    """

    bits: int
    columns: torch.Tensor


@dataclass(frozen=True)
class Levels:
    """What every column may hold.

    Attributes:
        by_class: For each class its levels, columns x 2^bits, ascending.
        scales: Float32, rows x scales of a row.
        owner: For each column of the weight, which of its row's scales it has.
    """

    by_class: tuple[torch.Tensor, ...]
    scales: torch.Tensor
    owner: torch.Tensor


@dataclass(frozen=True)
class Outliers:
    """What stays in 16 bits.

    Attributes:
        columns: Int64, columns kept whole.
        entries: Int64, entries x 2: rows and columns of single weights.
    """

    columns: torch.Tensor
    entries: torch.Tensor

    def mask(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns which weights of ``weight`` stay in 16 bits."""
        kept = torch.zeros(weight.shape, dtype=torch.bool)
        kept[:, self.columns] = True
        kept[self.entries[:, 0], self.entries[:, 1]] = True
        return kept


@dataclass(frozen=True)
class RoundedChannels:
    """A rounded weight.

    Attributes:
        indices: For each class, uint8, columns x rows.
        values: Float32, rows x columns: what indices and levels stand for; 0 in columns that
            are kept whole.
        wanted: Float32, rows x columns: the rounded values, errors of other columns included.
    """

    indices: tuple[torch.Tensor, ...]
    values: torch.Tensor
    wanted: torch.Tensor


def free(
    weight: torch.Tensor, classes: Sequence[Class], outliers: Outliers, rows: torch.Tensor
) -> Levels:
    """Chooses the levels of each column freely.

    Args:
        weight: Float32, rows x columns.
        classes: Its columns by width.
        outliers: What the levels need not serve.
        rows: What a squared error costs in each row.
    """
    price = torch.where(outliers.mask(weight), 0.0, rows[:, None]).T
    found = tuple(
        free_levels(weight.T[one.columns], price[one.columns], one.bits).levels
        for one in classes
    )
    owner = torch.zeros(weight.shape[1], dtype=torch.long)
    return Levels(found, torch.ones(len(weight), 1), owner)


def on_grid(
    weight: torch.Tensor,
    classes: Sequence[Class],
    outliers: Outliers,
    rows: torch.Tensor,
    columns: torch.Tensor,
    grid_bits: int,
    group: int,
) -> Levels:
    """Chooses the levels of each column among the integers of a grid, times scales of the row.

    Args:
        weight: Float32, rows x columns.
        classes: Its columns by width.
        outliers: What the levels need not serve.
        rows: What a squared error costs in each row.
        columns: What a squared error costs in each column.
        grid_bits: Width of the grid: 4 or 8.
        group: Columns that share a scale; 0 for one scale per row.
    """
    kept = outliers.mask(weight)
    served = torch.where(kept, 0.0, weight)
    width = group or weight.shape[1]
    scales = search_scales(served, grid_bits, width, columns)
    owner = torch.arange(weight.shape[1]) // width
    price = torch.where(kept, 0.0, rows[:, None])
    for refit in range(_REFITS + 1):
        wide = scales[:, owner]
        scaled, paid = (served / wide).T, (price * wide.square()).T
        coded = [
            grid_levels(scaled[one.columns], paid[one.columns], one.bits, grid_bits)
            for one in classes
        ]
        if refit < _REFITS:
            codes = torch.zeros_like(weight)
            for one, part in zip(classes, coded, strict=True):
                codes[:, one.columns] = part.decode().T
            codes[kept] = 0
            scales = _refitted(served, codes, columns, owner, scales)
    return Levels(tuple(part.levels for part in coded), scales, owner)


def _refitted(
    weight: torch.Tensor,
    codes: torch.Tensor,
    columns: torch.Tensor,
    owner: torch.Tensor,
    scales: torch.Tensor,
) -> torch.Tensor:
    """Returns the scales of least squared error for given codes, as float16 holds them."""
    above = torch.zeros_like(scales).index_add_(1, owner, weight * codes * columns)
    below = torch.zeros_like(scales).index_add_(1, owner, codes.square() * columns)
    best = torch.where(below > 0, above / below.clamp_min(1e-38), scales)
    size = best.abs().clamp(_SMALLEST_SCALE, 65504.0)
    return (torch.where(best < 0, -1.0, 1.0) * size).half().float()


def even(
    weight: torch.Tensor,
    classes: Sequence[Class],
    outliers: Outliers,
    columns: torch.Tensor,
    group: int,
) -> Levels:
    """Takes all integers of a width for levels; columns of a class share scales in groups."""
    served = torch.where(outliers.mask(weight), 0.0, weight)
    owner = torch.zeros(weight.shape[1], dtype=torch.long)
    found, scales, start = [], [], 0
    for one in classes:
        part = search_scales(served[:, one.columns], one.bits, group, columns[one.columns])
        owner[one.columns] = start + torch.arange(len(one.columns)) // group
        start += part.shape[1]
        half = 1 << (one.bits - 1)
        found.append(torch.arange(-half, half).float().repeat(len(one.columns), 1))
        scales.append(part)
    return Levels(tuple(found), torch.cat(scales, dim=1), owner)


def round_channels(
    weight: torch.Tensor,
    classes: Sequence[Class],
    levels: Levels,
    outliers: Outliers,
    factor: Factor | None,
) -> RoundedChannels:
    """Sends every weight to its nearest level, column by column.

    Args:
        weight: Float32, rows x columns.
        classes: Its columns by width.
        levels: The values that the columns may hold.
        outliers: Weights that keep their value, and so leave no error.
        factor: The factorized Hessian against which errors are compensated; None for none.
    """
    rows, columns = weight.shape
    order = torch.arange(columns) if factor is None else factor.order
    place = {
        int(column): (at, within)
        for at, one in enumerate(classes)
        for within, column in enumerate(one.columns)
    }
    kept = outliers.mask(weight)
    indices = tuple(torch.zeros(len(one.columns), rows, dtype=torch.uint8) for one in classes)
    left, values, wanted = weight.clone(), torch.zeros_like(weight), weight.clone()
    for start in range(0, columns, _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, columns)
        errors = torch.zeros(rows, stop - start)
        for at in range(start, stop):
            column = int(order[at])
            value = left[:, column]
            if factor is not None and at > start:
                value = value - errors[:, : at - start] @ factor.upper[start:at, at]
            wanted[:, column] = value
            if column not in place:
                continue
            which, within = place[column]
            scale = levels.scales[:, levels.owner[column]]
            found = _nearest(value / scale, levels.by_class[which][within])
            indices[which][within] = found.to(torch.uint8)
            values[:, column] = levels.by_class[which][within][found] * scale
            if factor is not None:
                error = torch.where(kept[:, column], 0.0, value - values[:, column])
                errors[:, at - start] = error / factor.upper[at, at]
        if factor is not None and stop < columns:
            left[:, order[stop:]] -= errors @ factor.upper[start:stop, stop:]
    return RoundedChannels(indices, values, wanted)


def _nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Returns for each value the index of the level next to it."""
    return torch.searchsorted((levels[1:] + levels[:-1]) / 2, values)
