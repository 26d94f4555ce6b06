"""Rows and columns that moved or grew since calibration: how to read its arrays all the same.

Hessians are large and stay in their file as they were gathered. What moved is kept as two
small arrays of the unit: row ``n`` now was row ``<unit>/rows-from[n]`` then; columns alike.
What grew is kept as two more, in today's order: weights of row ``n`` are ``<unit>/rows-by[n]``
times what they were. For ``W' = diag(r) W diag(c)``, which multiplies ``x / c`` and makes
``r y``, the moments are

    g'_n = g_n / r_n^2        H' = H / (c c^T)        variances and peaks of x alike
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from ....ir import ArrayStore, Unit
from .squares import DEVIATIONS, read_square

_CHANGES = ("rows-from", "columns-from", "rows-by", "columns-by")
# By array of a term: the axis that it follows, and the power of the weights' growth by which
# it shrinks. Square ones follow it on their last two axes.
_FOLLOWS = {
    "rows": ("rows", 2),
    "owners": ("rows", 0),
    "coupling": ("rows", 1),
    "hessian": ("columns", 1),
    "hessian/deviations": ("columns", 1),
    "local": ("columns", 1),
    "activation": ("columns", 2),
    "low": ("columns", 1),
    "high": ("columns", 1),
}
_SQUARES = ("hessian", "local", "coupling")


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
    grown = f"{unit.name}/{axis}-by"
    if grown in arrays:
        arrays.put(grown, arrays.get(grown)[order])
    if axis == "rows":
        for loss in _losses(unit, arrays):
            arrays.put(loss, arrays.get(loss)[order])
    else:
        _move_indices(unit, arrays, order)


def _losses(unit: Unit, arrays: ArrayStore) -> list[str]:
    """Returns the names of what rows lose, as annotate-sensitivity has left it."""
    columns, starts = f"{unit.name}/keep/columns", (f"{unit.name}/loss", f"{unit.name}/keep/")
    return [name for name in arrays.names() if name.startswith(starts) and name != columns]


def _move_indices(unit: Unit, arrays: ArrayStore, order: np.ndarray) -> None:
    """Lets indices of columns go on naming the same ones."""
    now = np.empty(len(order), dtype=np.int32)
    now[order] = np.arange(len(order), dtype=np.int32)
    chosen, ranked = f"{unit.name}/outliers/columns", f"{unit.name}/keep/columns"
    if chosen in arrays:
        arrays.put(chosen, np.sort(now[arrays.get(chosen)]))
    if ranked in arrays:
        arrays.put(ranked, now[arrays.get(ranked)])


def grow(unit: Unit, arrays: ArrayStore, axis: str, factors: np.ndarray) -> None:
    """Notes that weights are ``factors`` times what they were, and what they meet in return.

    Args:
        unit: The unit.
        arrays: The side store.
        axis: ``rows`` or ``columns``.
        factors: One for each row or column, all positive.
    """
    name = f"{unit.name}/{axis}-by"
    earlier = arrays.get(name) if name in arrays else np.ones(len(factors), np.float32)
    arrays.put(name, (earlier * factors).astype(np.float32))


def forget_moves(units: Iterable[Unit], arrays: ArrayStore) -> None:
    """Forgets what moved and grew, for statistics that are gathered anew."""
    for unit in units:
        for change in _CHANGES:
            arrays.discard(f"{unit.name}/{change}")
        for term in range(len(unit.uses)):  # what replace_moved has put there
            arrays.discard(f"{unit.name}/{term}/")


def moves_key(units: Iterable[Unit], arrays: ArrayStore) -> str:
    """Returns a text that tells one way of moving from another; empty when nothing moved."""
    names = [f"{unit.name}/{change}" for unit in units for change in _CHANGES]
    moved = [name for name in names if name in arrays]
    content = b"".join(name.encode() + arrays.get(name).tobytes() for name in moved)
    return hashlib.sha256(content).hexdigest()[:16] if moved else ""


def read_moved(unit: Unit, arrays: ArrayStore, term: int, what: str) -> np.ndarray:
    """Returns an array that calibration left for a term of ``unit``, as it is today.

    Args:
        unit: The unit.
        arrays: The side store.
        term: Which use of the unit.
        what: ``rows``, ``owners``, ``coupling``, ``hessian``, ``local``, ``activation``,
            ``low``, ``high``.
    """
    name = f"{unit.name}/{term}/{what}"
    packed = f"{name}{DEVIATIONS}" in arrays
    array = read_square(arrays, name) if packed else np.array(arrays.get(name))
    axis, power = _FOLLOWS[what]
    square = what in _SQUARES
    if f"{unit.name}/{axis}-from" in arrays:
        order = arrays.get(f"{unit.name}/{axis}-from")
        array = array[..., order[:, None], order] if square else array[order]
    if power and f"{unit.name}/{axis}-by" in arrays:
        shrink = (1 / arrays.get(f"{unit.name}/{axis}-by")) ** power
        array *= np.outer(shrink, shrink) if square else shrink
    return array


def replace_moved(
    unit: Unit, arrays: ArrayStore, term: int, what: str, array: np.ndarray
) -> None:
    """Lets ``read_moved`` return ``array`` from now on.

    Args:
        unit: The unit.
        arrays: The side store.
        term: Which use of the unit.
        what: As for ``read_moved``, but nothing square.
        array: What holds for the unit as it is today.
    """
    axis, power = _FOLLOWS[what]
    kept = np.array(array)
    if f"{unit.name}/{axis}-by" in arrays:
        kept *= arrays.get(f"{unit.name}/{axis}-by") ** power
    if f"{unit.name}/{axis}-from" in arrays:
        order = arrays.get(f"{unit.name}/{axis}-from")
        kept[order] = kept.copy()
    arrays.put(f"{unit.name}/{term}/{what}", kept)
