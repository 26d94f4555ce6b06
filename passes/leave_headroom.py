"""The pass ``leave-headroom``: INT8 codes whose products no processor clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from ..ir import (
    Annotation,
    ArrayStore,
    Budgeted,
    FloatActivations,
    Option,
    QuantSpec,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    need_note,
    note_of,
    quantizable,
)
from ..ir.unit_arrays import RowClass, UnitArrays
from .engine.execution.multiplications import multiplications
from .engine.numerics.headroom import with_headroom
from .engine.numerics.pair_sums import kernel_order, overflowing_rows
from .engine.pipeline.base import Pass, PassContext, Promise
from .engine.pipeline.forecast import Forecast, Headroom
from .engine.statistics.quadratic import Quadratic, outlier_columns

_BITS = 8
_WHY = "room for sums of its products would cost more than integers gain"


@dataclass(frozen=True)
class LeaveHeadroom(Pass):
    """Round INT8 rows anew in which sums of two products could be clipped.

    Processors without VNNI multiply rounded activations by INT8 weights two at a time and clip
    each sum at 16 bits, without a word. A row with two neighbouring codes that sum to more
    than 128 therefore gets a larger scale, at most about twice as large, so that every
    processor computes the same. ``insert-qdq`` needs this where it rounds activations; rows
    with several scales and rows that are only looked up stay as they are.

    Where that loses most for the multiplications that become integers, as in the head of a
    classifier, nothing is gained by it: such matrices keep their codes and read floats.

    Attributes:
        share: Share of all multiplications that may stay in float for this reason.
    """

    name: ClassVar[str] = "leave-headroom"
    reads: ClassVar[tuple[type[Annotation], ...]] = (QuantSpec,)
    writes: ClassVar[tuple[type[Annotation], ...]] = (FloatActivations,)
    promise: ClassVar[Promise] = Promise.SIMULATION

    share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(
                f"leave-headroom{{share={self.share}}} is no share", hint="0 to 1"
            )

    def forecast(self, before: Forecast) -> Forecast:
        return super().forecast(before).telling(Headroom())

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Rounds rows anew, and adds what that is predicted to cost to the budget's note."""
        units = [
            unit
            for unit in quantizable(model)
            if note_of(unit.notes, QuantSpec) is not None and is_multiplied(unit)
        ]
        matrices = [unit for unit in units if _may_read_floats(unit)]
        losses = {unit: _Room.of(unit, context).loss for unit in matrices}
        floats = _not_worth_it(losses, multiplications(model, units, context), self.share)
        rows, loss = {}, 0.0
        for unit in units:
            if unit in floats:
                annotate(unit.notes, FloatActivations(unit.name, _WHY))
                continue
            room = _Room.of(unit, context)
            room.make(context.arrays)
            rows[unit.name] = room.rows
            loss += room.loss
        budget = note_of(model, Budgeted)
        if budget is not None and loss:
            annotate(model, replace(budget, loss=budget.loss + loss))
        context.report[self.name] = {
            "rows": rows,
            "loss": loss,
            "float_activations": {unit.name: losses[unit] for unit in floats},
        }
        return any(rows.values())


@dataclass(frozen=True)
class _Room:
    """What becomes of a unit that leaves headroom.

    Attributes:
        unit: The unit.
        matrix: Its simulated matrix then.
        codes: New codes of its row classes, by index; none for classes that stay.
        scales: Their scales.
        rows: How many rows change.
        loss: The predicted divergence of the change, in nats per token.
    """

    unit: Unit
    matrix: np.ndarray
    codes: Mapping[int, np.ndarray]
    scales: Mapping[int, np.ndarray]
    rows: int
    loss: float

    @classmethod
    def of(cls, unit: Unit, context: PassContext) -> _Room:
        """Rounds the rows of a unit anew that could be clipped."""
        spec, own = need_note(unit.notes, QuantSpec), UnitArrays(unit.name, context.arrays)
        known = note_of(unit.notes, TensorStats) is not None
        quadratic = None
        if known:
            kept = outlier_columns(unit, context.arrays)
            quadratic = Quadratic.of(unit, context.arrays).keeping(kept)
        before = unit.matrix()
        matrix, rows = before.copy(), 0
        codes, scales = {}, {}
        for one in own.row_classes(spec.options, spec.counts):
            integers = context.capabilities.multiplies_integers(one.option, unit.shape[1])
            if not integers or one.option.bits != _BITS:
                continue
            found = _with_room(unit, one, own, matrix, quadratic)
            if found is not None:
                codes[one.index], scales[one.index], count = found
                rows += count
        loss = _loss(quadratic, before, matrix) if quadratic is not None and rows else 0.0
        return cls(unit, matrix, codes, scales, rows, loss)

    def make(self, arrays: ArrayStore) -> None:
        """Writes the new codes and the new matrix."""
        own = UnitArrays(self.unit.name, arrays)
        for index, codes in self.codes.items():
            own.put(codes, "codes", index)
            own.put(self.scales[index], "scales", index)
        if self.rows:
            self.unit.replace(self.matrix)


def _not_worth_it(
    losses: Mapping[Unit, float], work: Mapping[Unit, float], share: float
) -> list[Unit]:
    """Returns the units that lose most for their multiplications, within a share of all."""
    left = share * sum(work.values())
    found = []
    for unit in sorted(losses, key=lambda unit: -losses[unit] / max(work[unit], 1.0)):
        if losses[unit] > 0 and work[unit] <= left:
            found.append(unit)
            left -= work[unit]
    return found


def is_multiplied(unit: Unit) -> bool:
    """Tells whether products or convolutions read the unit, or kernels of integers."""
    return any(use.kind in ("product", "conv") for use in unit.uses) or _is_integer(unit)


def _may_read_floats(unit: Unit) -> bool:
    """Tells whether a unit's lowering has another kernel for the same codes.

    Of convolutions one in float would make its neighbours slower too.
    """
    return all(use.kind != "conv" for use in unit.uses) and not _is_integer(unit)


def _is_integer(unit: Unit) -> bool:
    spec = need_note(unit.notes, QuantSpec)
    return any(Option.parse(text).integer for text in spec.options)


def _with_room(
    unit: Unit, one: RowClass, own: UnitArrays, matrix: np.ndarray, quadratic: Quadratic | None
) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Rounds rows of one class anew, in ``matrix`` too, group by group.

    A kernel sums up each group by itself; of an LSTM those are the directions.

    Returns:
        Codes, scales and the number of rows that change; None if none does.
    """
    codes, scales = own.get("codes", one.index).copy(), own.get("scales", one.index)
    scales = scales.astype(np.float16)
    size, changing = one.option.group, np.zeros(len(one.rows), bool)
    order = kernel_order(unit) if size == unit.shape[1] else np.arange(size)
    for at in range(scales.shape[1]):
        part = slice(at * size, (at + 1) * size)
        if not overflowing_rows(codes[:, part][:, order]).any():
            continue
        factor = quadratic.factor(part) if quadratic is not None else None
        before = codes[:, part] * scales[:, at].astype(np.float32)[:, None]
        made, steps, changed = with_headroom(codes[:, part], scales[:, at], order, factor)
        codes[:, part], scales[:, at] = made, steps
        after = made * steps.astype(np.float32)[:, None]
        moved = (after != before) & changed[:, None]  # what is kept in 16 bits stays
        matrix[one.rows, part] = np.where(moved, after, matrix[one.rows, part])
        changing |= changed
    return (codes, scales, int(changing.sum())) if changing.any() else None


def _loss(quadratic: Quadratic, old: np.ndarray, new: np.ndarray) -> float:
    """Returns the predicted divergence of a change, in nats per token."""
    losses = quadratic.loss(torch.from_numpy(old), torch.from_numpy(new))
    return float(losses.sum(dtype=torch.float64))
