"""Rows and columns that moved since calibration, and how to read its arrays all the same.

Hessians are large and stay in their file as they were gathered. What moved is kept as two
small arrays of the unit: row ``n`` now was row ``<unit>/rows-from[n]`` then; columns alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from ...ir import ArrayStore, Unit

_INDICES = ("rows-from", "columns-from")


def move(unit: Unit, arrays: ArrayStore, axis: str, order: np.ndarray) -> None:
    """Notes that what stands at ``i`` stood at ``order[i]`` before.

    Args:
        unit: The unit.
        arrays: The side store.
        axis: ``rows`` or ``columns``.
        order: Indices, a permutation.
    """
    name = f"{unit.name}/{axis}-from"
    earlier = arrays.get(name) if name in arrays else np.arange(len(order), dtype=np.int32)
    arrays.put(name, earlier[order])
    loss = f"{unit.name}/loss"
    if axis == "rows" and loss in arrays:
        arrays.put(loss, arrays.get(loss)[order])


def forget_moves(units: Iterable[Unit], arrays: ArrayStore) -> None:
    """Forgets what moved, for statistics that are gathered anew."""
    for unit in units:
        for index in _INDICES:
            arrays.discard(f"{unit.name}/{index}")


def moves_key(units: Iterable[Unit], arrays: ArrayStore) -> str:
    """Returns a text that tells one way of moving from another; empty when nothing moved."""
    names = [f"{unit.name}/{index}" for unit in units for index in _INDICES]
    moved = [name for name in names if name in arrays]
    content = b"".join(name.encode() + arrays.get(name).tobytes() for name in moved)
    return hashlib.sha256(content).hexdigest()[:16] if moved else ""


def read_moved(unit: Unit, arrays: ArrayStore, term: int, what: str) -> np.ndarray:
    """Returns an array that calibration left for a term of ``unit``, in today's order.

    Args:
        unit: The unit.
        arrays: The side store.
        term: Which use of the unit.
        what: ``rows``, ``owners``, ``hessian``, ``local`` or ``activation``.
    """
    array: np.ndarray = np.array(arrays.get(f"{unit.name}/{term}/{what}"))
    index = f"{unit.name}/{'rows' if what in ('rows', 'owners') else 'columns'}-from"
    if index not in arrays:
        return array
    order = arrays.get(index)
    square = what in ("hessian", "local")
    moved: np.ndarray = array[..., order[:, None], order] if square else array[order]
    return moved
