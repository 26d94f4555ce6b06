"""What the codes and scales in the array store stand for, and whether they fit together.

The arrays are read here once more, by the description in ``ir/vocabulary.py`` alone: a check
that shares code with what it checks shares its faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import ml_dtypes
import numpy as np

from ....ir import (
    ArrayStore,
    ChannelAllocation,
    ChannelSpec,
    Option,
    OutlierColumns,
    OutlierEntries,
    QuantSpec,
    Unit,
    need_note,
    note_of,
)


class Inconsistent(Exception):
    """Arrays of a unit that do not fit together; the text says how."""


def is_rounded(unit: Unit) -> bool:
    """Tells whether codes in the array store stand for the unit's weight."""
    return any(note_of(unit.notes, kind) is not None for kind in (QuantSpec, ChannelSpec))


def stored_matrix(unit: Unit, arrays: ArrayStore) -> np.ndarray:
    """Returns the weight that the unit's codes stand for: float32, rows x columns.

    Args:
        unit: A unit with a ``QuantSpec`` or a ``ChannelSpec``.
        arrays: Its codes, scales, orders and outliers, as those notes describe them.

    Raises:
        Inconsistent: Shapes, ranges or orders do not fit the notes.
    """
    spec = note_of(unit.notes, QuantSpec)
    made = np.full(unit.shape, np.nan, dtype=np.float32)
    if spec is not None:
        _fill_rows(made, spec, arrays)
    else:
        _fill_columns(made, need_note(unit.notes, ChannelAllocation), arrays)
    _put_outliers(made, unit, arrays)
    if np.isnan(made).any():
        row, column = np.argwhere(np.isnan(made))[0]
        raise Inconsistent(f"no code stands for row {row}, column {column}")
    return made


def _fill_rows(made: np.ndarray, spec: QuantSpec, arrays: ArrayStore) -> None:
    rows, columns = made.shape
    order = np.arange(rows)
    if f"{spec.unit}/order" in arrays:
        order = _permutation(arrays, f"{spec.unit}/order", rows)
    if sum(spec.counts) != rows:
        raise Inconsistent(f"its row classes have {sum(spec.counts)} rows, it has {rows}")
    for at, (text, places) in enumerate(
        zip(spec.options, _split(order, spec.counts), strict=True)
    ):
        option = Option.parse(text)
        codes = _shaped(arrays, f"{spec.unit}/codes/{at}", (len(places), columns))
        if option.float8:
            _check_float8(codes, f"row class {at}")
        else:
            _check_range(codes, -(1 << (option.bits - 1)), option.bits, f"row class {at}")
        shape = (len(places), option.groups(columns))
        scales = _shaped(arrays, f"{spec.unit}/scales/{at}", shape).astype(np.float32)
        wide = np.repeat(scales, option.group, axis=1)[:, :columns]
        made[places] = np.multiply(wide, codes, out=wide)


def _fill_columns(made: np.ndarray, note: ChannelAllocation, arrays: ArrayStore) -> None:
    rows, columns = made.shape
    order, first = arrays.get(f"{note.unit}/channels"), 0
    if len(np.unique(order)) != len(order) or sum(note.counts) != len(order):
        raise Inconsistent("its channels are not each in one class")
    for at, (bits, places) in enumerate(
        zip(note.bits, _split(order, note.counts), strict=True)
    ):
        indices = _shaped(arrays, f"{note.unit}/indices/{at}", (len(places), rows))
        _check_range(indices, 0, bits, f"channel class {at}")
        values = indices.astype(np.float32) - (1 << (bits - 1))
        if note.levels != "even":
            levels = _shaped(arrays, f"{note.unit}/levels/{at}", (len(places), 1 << bits))
            values = np.take_along_axis(levels.astype(np.float32), indices.astype(int), axis=1)
        made[:, places] = values.T
        if note.levels == "even":
            made[:, places] *= _even_scales(note, arrays, first, len(places))
            first += Option(bits, note.group).groups(len(places))
    if note.levels not in ("free", "even"):
        scales = arrays.get(f"{note.unit}/scales").astype(np.float32)
        made *= np.repeat(scales, note.group or columns, axis=1)[:, :columns]


def _even_scales(
    note: ChannelAllocation, arrays: ArrayStore, first: int, count: int
) -> np.ndarray:
    """Returns the scales of a class of channels whose groups begin at ``first``."""
    scales = arrays.get(f"{note.unit}/scales")[:, first:].astype(np.float32)
    return np.repeat(scales, note.group, axis=1)[:, :count]


def _put_outliers(made: np.ndarray, unit: Unit, arrays: ArrayStore) -> None:
    if note_of(unit.notes, OutlierColumns) is not None:
        columns = arrays.get(f"{unit.name}/outliers/columns")
        shape = (len(columns), len(made))
        made[:, columns] = _shaped(arrays, f"{unit.name}/outliers/kept", shape).T
    if note_of(unit.notes, OutlierEntries) is not None:
        rows, columns = arrays.get(f"{unit.name}/outliers/entries").T
        values = arrays.get(f"{unit.name}/outliers/values").astype(np.float32)
        replaced = need_note(unit.notes, ChannelAllocation).levels == "free"
        made[rows, columns] = values if replaced else made[rows, columns] + values


def _split(order: np.ndarray, counts: tuple[int, ...]) -> Iterator[np.ndarray]:
    for end, count in zip(accumulate(counts), counts, strict=True):
        yield order[end - count : end]


def _shaped(arrays: ArrayStore, name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = arrays.get(name)
    if array.shape != shape:
        raise Inconsistent(f"{name!r} has shape {list(array.shape)}, expected {list(shape)}")
    return array


def _check_range(codes: np.ndarray, low: int, bits: int, where: str) -> None:
    high = low + (1 << bits) - 1
    if codes.size and not low <= int(codes.min()) <= int(codes.max()) <= high:
        raise Inconsistent(f"{where} has codes outside {low} to {high}")


def _check_float8(codes: np.ndarray, where: str) -> None:
    if not np.array_equal(codes, codes.astype(ml_dtypes.float8_e4m3fn).astype(codes.dtype)):
        raise Inconsistent(f"{where} has codes that are no floats of 8 bits")


def _permutation(arrays: ArrayStore, name: str, count: int) -> np.ndarray:
    order = arrays.get(name)
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise Inconsistent(f"{name!r} is not an order of {count} rows")
    return order
