"""Lets the graph have the values of a unit's codes without holding them in memory."""

from __future__ import annotations

import numpy as np
import torch

from ....ir import ArrayStore, QuantSpec, Unit, need_note
from ....ir.unit_arrays import UnitArrays
from ..numerics.borrowing import borrowed
from ..numerics.expanded import expand
from .quadratic import outlier_columns


def simulate(unit: Unit, arrays: ArrayStore) -> None:
    """Replaces a weight by what its codes stand for, which is computed whenever it is read.

    Args:
        unit: A unit with a ``QuantSpec``.
        arrays: Its codes, scales and kept columns, as they are now.
    """
    spec, own = need_note(unit.notes, QuantSpec), UnitArrays(unit.name, arrays)
    classes = [
        (one.rows, one.option.group, own.get("codes", one.index), own.get("scales", one.index))
        for one in own.row_classes(spec.options, spec.counts)
    ]
    columns, shape = outlier_columns(unit, arrays), unit.shape
    kept = own.get("outliers", "kept") if len(columns) else None

    def matrix() -> np.ndarray:
        made = np.empty(shape, np.float32)
        for rows, group, codes, scales in classes:
            places = torch.from_numpy(rows.astype(np.int64))
            sizes = torch.from_numpy(scales.astype(np.float32))
            expand(borrowed(codes), sizes, group, places, torch.from_numpy(made))
        if kept is not None:
            made[:, columns] = kept.T
        return made

    unit.replace_lazily(matrix)
