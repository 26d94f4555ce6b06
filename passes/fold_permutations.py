"""The pass ``fold-permutations``: rows move to where they are stored, and stay there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir import (
    Annotation,
    BitAllocation,
    SharedOrder,
    SharedRows,
    Unit,
    drop_note,
    find_shared_orders,
    note_of,
)
from ..ir.unit_arrays import UnitArrays
from .engine.pipeline.base import Pass, PassContext, Promise
from .engine.statistics.moved import move


@dataclass(frozen=True)
class FoldPermutations(Pass):
    """Sort the rows of units by their options, and the columns that read them likewise.

    Rows that share an option are stored side by side, so lowering ends in a Gather that
    restores the order of the outputs. If only elementwise operations stand between the units
    and the products that read them, their order is free, and the Gather is not needed::

        h = act(x A + a)      =>      h = act(x A[:, p] + a[p])
        y = h B                       y = h B[p, :]

    The pass acts on the groups that share an order by ``allocate-bits{fold=true}``. Apart from
    the order of summation in the second product, all numbers stay the same.
    """

    name: ClassVar[str] = "fold-permutations"
    reads: ClassVar[tuple[type[Annotation], ...]] = (BitAllocation,)
    drops: ClassVar[tuple[type[Annotation], ...]] = (SharedRows,)
    promise: ClassVar[Promise] = Promise.SAME_FUNCTION

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Moves rows, columns and constants of every group that was given an order."""
        orders = find_shared_orders(model)
        groups = [group for group in orders.found if _was_chosen(group)]
        for group in groups:
            _fold(group, context)
        fixed = {unit.name: one.why for one in orders.refused for unit in one.units}
        folded = [group.name for group in groups]
        context.report[self.name] = {"folded": folded, "fixed": fixed}
        return bool(groups)


def _was_chosen(group: SharedOrder) -> bool:
    """Tells whether the allocation let exactly these units share their order."""
    notes = [note_of(unit.notes, SharedRows) for unit in group.producers]
    return all(note is not None and note.group == group.name for note in notes)


def _fold(group: SharedOrder, context: PassContext) -> None:
    owned = [UnitArrays(unit.name, context.arrays) for unit in group.producers]
    order = next(own.get("order") for own in owned if own.has("order"))
    for unit, own in zip(group.producers, owned, strict=True):
        _reorder(unit.weight, unit.row_axis, order)
        move(unit, context.arrays, "rows", order)
        own.discard("order")
        drop_note(unit.notes, SharedRows)
    for unit in group.consumers:
        _reorder(unit.weight, _column_axis(unit), order)
        move(unit, context.arrays, "columns", order)
    for constant in group.constants:
        _reorder(constant, -1, order)


def _column_axis(unit: Unit) -> int:
    """Returns the axis of the stored matrix that counts columns."""
    return 1 - unit.row_axis


def _reorder(value: ir.Value, axis: int, order: np.ndarray) -> None:
    """Lets an initializer have its entries along ``axis`` in another order, once read."""
    old = value.const_value
    assert old is not None
    shape = ir.Shape(old.shape.numpy())

    def moved() -> ir.Tensor[np.ndarray]:
        return ir.Tensor(np.take(old.numpy(), order, axis=axis), old.dtype, name=value.name)

    value.const_value = ir.LazyTensor(moved, dtype=old.dtype, shape=shape, name=value.name)
