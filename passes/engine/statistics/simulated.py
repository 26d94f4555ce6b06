"""Lets the graph have the values of a unit's codes without holding them in memory."""

from __future__ import annotations

import numpy as np

from ....ir import ArrayStore, QuantSpec, Unit, need_note
from ....ir.unit_arrays import UnitArrays
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
            wide = np.repeat(scales.astype(np.float32), group, axis=1)[:, : shape[1]]
            made[rows] = np.multiply(wide, codes, out=wide)
        if kept is not None:
            made[:, columns] = kept.T
        return made

    unit.replace_lazily(matrix)
