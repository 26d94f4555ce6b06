"""The pass ``leave-headroom``: INT8 codes whose products no processor clips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from ..ir import (
    Annotation,
    Budgeted,
    QuantSpec,
    TensorStats,
    Unit,
    annotate,
    need_note,
    note_of,
    quantizable,
)
from ..ir.unit_arrays import RowClass, UnitArrays
from .engine.numerics.pair_sums import kernel_order, overflowing_rows, without_overflow
from .engine.pipeline.base import Pass, PassContext, Promise
from .engine.pipeline.forecast import Forecast, Headroom
from .engine.statistics.quadratic import Quadratic


@dataclass(frozen=True)
class LeaveHeadroom(Pass):
    """Round INT8 rows anew in which sums of two products could be clipped.

    Processors without VNNI multiply rounded activations by INT8 weights two at a time and clip
    each sum at 16 bits, without a word. A row with two neighbouring codes that sum to more
    than 128 therefore gets a larger scale, at most about twice as large, so that every
    processor computes the same. ``insert-qdq`` needs this where it rounds activations; rows
    with several scales and rows that are only looked up stay as they are.
    """

    name: ClassVar[str] = "leave-headroom"
    reads: ClassVar[tuple[type[Annotation], ...]] = (QuantSpec,)
    promise: ClassVar[Promise] = Promise.SIMULATION

    def forecast(self, before: Forecast) -> Forecast:
        return super().forecast(before).telling(Headroom())

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Rounds rows anew, and adds what that is predicted to cost to the budget's note."""
        rows, loss = {}, 0.0
        for unit in quantizable(model):
            if note_of(unit.notes, QuantSpec) is None or not is_multiplied(unit):
                continue
            before = unit.matrix()
            rows[unit.name] = _make_room(unit, context)
            if rows[unit.name] and note_of(unit.notes, TensorStats) is not None:
                loss += _loss(unit, before, context)
        budget = note_of(model, Budgeted)
        if budget is not None and loss:
            annotate(model, replace(budget, loss=budget.loss + loss))
        context.report[self.name] = {"rows": rows, "loss": loss}
        return any(rows.values())


def is_multiplied(unit: Unit) -> bool:
    """Tells whether products or convolutions read the unit."""
    return any(use.kind in ("product", "conv") for use in unit.uses)


def _make_room(unit: Unit, context: PassContext) -> int:
    """Rounds the rows of a unit anew that could be clipped; returns how many they were."""
    spec, own = need_note(unit.notes, QuantSpec), UnitArrays(unit.name, context.arrays)
    matrix, changed = unit.matrix().copy(), 0
    for one in own.row_classes(spec.options, spec.counts):
        if one.option.group == unit.shape[1] and one.option.bits == 8:
            changed += _make_room_in_class(unit, one, own, matrix)
    if changed:
        unit.replace(matrix)
    return changed


def _make_room_in_class(unit: Unit, one: RowClass, own: UnitArrays, matrix: np.ndarray) -> int:
    """Rounds rows of one class anew, in the arrays and in the simulated matrix."""
    order = kernel_order(unit)
    codes, steps = own.get("codes", one.index)[:, order], own.get("scales", one.index)[:, 0]
    overflowing = overflowing_rows(codes)
    if not overflowing.any():
        return 0
    steps = steps.astype(np.float16)
    weight = codes * steps.astype(np.float32)[:, None]
    codes, steps = without_overflow(weight, codes, steps)
    codes = np.ascontiguousarray(codes[:, np.argsort(order)])
    own.put(codes, "codes", one.index)
    own.put(steps[:, None], "scales", one.index)
    stored = codes * steps.astype(np.float32)[:, None]
    matrix[one.rows[overflowing]] = stored[overflowing]
    return int(overflowing.sum())


def _loss(unit: Unit, before: np.ndarray, context: PassContext) -> float:
    """Returns the predicted divergence of the change, in nats per token."""
    quadratic = Quadratic.of(unit, context.arrays)
    old, new = torch.from_numpy(before), torch.from_numpy(unit.matrix())
    return float(quadratic.loss(old, new).sum(dtype=torch.float64))
