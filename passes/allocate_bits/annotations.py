"""Writes decisions down as notes, and reads them back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir import (
    BitAllocation,
    Option,
    OutlierColumns,
    Sensitivity,
    SharedRows,
    Unit,
    annotate,
    drop_note,
    need_note,
    note_of,
)
from ...ir.unit_arrays import UnitArrays
from ..engine.numerics.knapsack import Choice
from ..engine.pipeline.base import PassContext
from .decision import Candidate, Decision


def write_down(
    decisions: Sequence[Decision], candidates: Sequence[Candidate], context: PassContext
) -> None:
    """Annotates every unit with its options, the order of its rows and its outlier columns."""
    for candidate in candidates:
        _annotate_outliers(candidate, context)
    for decision in decisions:
        _annotate(decision, context)


def options_of(unit: Unit) -> list[tuple[Option, int]]:
    """Returns the options that the unit got, with the number of rows that have each."""
    note = need_note(unit.notes, BitAllocation)
    return list(zip(map(Option.parse, note.options), note.counts, strict=True))


def is_reordered(unit: Unit, context: PassContext) -> bool:
    """Tells whether the unit will store an order of its own."""
    is_shared = note_of(unit.notes, SharedRows) is not None
    return UnitArrays(unit.name, context.arrays).has("order") and not is_shared


def _annotate_outliers(candidate: Candidate, context: PassContext) -> None:
    """Writes down which input channels of a unit stay in 16 bits."""
    unit = candidate.unit
    arrays = UnitArrays(unit.name, context.arrays)
    drop_note(unit.notes, OutlierColumns)
    arrays.discard("outliers", "columns")
    if candidate.kept:
        arrays.put(candidate.outlier_columns(context.arrays), "outliers", "columns")
        annotate(unit.notes, OutlierColumns(unit.name, candidate.kept))


def _annotate(decision: Decision, context: PassContext) -> None:
    """Writes the options of the units, and the order of their rows."""
    order = np.argsort(decision.places, kind="stable").astype(np.int32)
    mixed = len(np.unique(decision.places)) > 1
    for unit, choice in zip(decision.units, decision.choices, strict=True):
        _annotate_unit(unit, choice, order, context)
        drop_note(unit.notes, SharedRows)
        if decision.group is not None and mixed:
            annotate(unit.notes, SharedRows(unit.name, decision.units[0].name))


def _annotate_unit(
    unit: Unit, choice: Choice, order: np.ndarray, context: PassContext
) -> None:
    note = need_note(unit.notes, Sensitivity)
    counts = np.bincount(choice.option, minlength=len(note.options))
    used = [at for at, count in enumerate(counts) if count]
    arrays = UnitArrays(unit.name, context.arrays)
    arrays.discard("order")
    if len(used) > 1:
        arrays.put(order, "order")
    annotate(
        unit.notes,
        BitAllocation(
            unit.name,
            tuple(note.options[at] for at in used),
            tuple(int(counts[at]) for at in used),
            choice.loss,
        ),
    )
