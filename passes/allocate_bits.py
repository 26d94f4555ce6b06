"""The pass ``allocate-bits``: which rows get which option, inside an exact budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir import (
    Annotation,
    BitAllocation,
    Budgeted,
    InfeasibleBudget,
    LeftInFloat,
    Option,
    Sensitivity,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    find_units,
    need_note,
    note_of,
)
from ..ir.text_form import did_you_mean
from .base import Pass, PassContext
from .lowering.cost import overhead_bytes
from .numerics.knapsack import Choice, Item, allocate, smallest_bytes

GRANULARITIES = ("row", "unit")


@dataclass(frozen=True)
class AllocateBits(Pass):
    """Choose options that fit the budget at the least predicted divergence.

    The budget counts everything that is stored for all units: codes, scales, row orders, and
    the units that stay in float. A table that serves as embedding and output head counts once.

    Attributes:
        budget: Stored bits per weight over all units.
        granularity: ``row`` decides tiles of rows, ``unit`` whole units.
        uniform: Give every unit the same option, the largest that fits (for comparison).
    """

    name: ClassVar[str] = "allocate-bits"
    reads: ClassVar[tuple[type[Annotation], ...]] = (Sensitivity, TensorStats)
    writes: ClassVar[tuple[type[Annotation], ...]] = (BitAllocation, Budgeted)
    budget: float
    granularity: str = "row"
    uniform: bool = False

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            hint = did_you_mean(self.granularity, GRANULARITIES)
            raise UsageError(f"no granularity {self.granularity!r}", hint=hint)
        if not 0 < self.budget <= 64:
            raise UsageError(f"a budget of {self.budget} bits per weight makes no sense")

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates every unit with its options and the order of its rows."""
        units = find_units(model)
        chosen = [unit for unit in units if note_of(unit.anchor, Sensitivity) is not None]
        weights = sum(unit.size for unit in units)
        if not chosen:
            raise InfeasibleBudget(
                "nothing in this model can be quantized", hint="run: mpqc inspect MODEL"
            )
        kept = sum(_float_bytes(unit) for unit in units if unit not in chosen)
        fixed = kept + sum(overhead_bytes(unit, 1) for unit in chosen)
        items = [self._item(unit, context) for unit in chosen]
        budget = int(self.budget * weights / 8) - fixed
        choices = _uniform(items, budget) if self.uniform else allocate(items, budget)
        if choices is None:
            _refuse(self.budget, smallest_bytes(items) + fixed, kept, weights)
        assert choices is not None
        for unit, choice in zip(chosen, choices, strict=True):
            _annotate(unit, choice, context)
        used = fixed + sum(choice.bytes for choice in choices)
        loss = sum(choice.loss for choice in choices)
        annotate(model, Budgeted(self.budget, used * 8 / weights, weights, loss))
        return True

    def _item(self, unit: Unit, context: PassContext) -> Item:
        note, stats = need_note(unit.anchor, Sensitivity), need_note(unit.anchor, TensorStats)
        rows, columns = unit.shape
        options = [Option.parse(text) for text in note.options]
        by_row = self.granularity == "row" and stats.by_row and not self.uniform
        return Item(
            loss=context.arrays.get(f"{unit.name}/loss"),
            row_bytes=np.array([option.row_bytes(columns) for option in options]),
            mixing_bytes=overhead_bytes(unit, len(options)) - overhead_bytes(unit, 1),
            tile=context.capabilities.row_tile if by_row else 0,
        )


def _float_bytes(unit: Unit) -> int:
    tensor = unit.weight.const_value
    assert tensor is not None
    return int(tensor.nbytes)


def _refuse(asked: float, smallest: int, kept: int, weights: int) -> None:
    least = int(np.ceil(smallest * 8 / weights * 1000)) / 1000
    why = f"; {kept} bytes of it are units that stay in float" if kept else ""
    raise InfeasibleBudget(
        f"{asked} stored bits per weight cannot be reached: the smallest is {least:.3f}{why}",
        hint=f"ask for --budget {least:.3f} or more",
    )


def _uniform(items: list[Item], budget: int) -> list[Choice] | None:
    """Gives all units the option of the same place in their lists, the largest that fits."""
    best = None
    for at in range(max(item.loss.shape[1] for item in items)):
        choices = [_whole(item, min(at, item.loss.shape[1] - 1)) for item in items]
        if sum(choice.bytes for choice in choices) <= budget:
            best = choices
    return best


def _whole(item: Item, option: int) -> Choice:
    rows = item.loss.shape[0]
    loss = float(item.loss[:, option].sum(dtype=np.float64))
    return Choice(np.full(rows, option), int(item.row_bytes[option]) * rows, loss)


def _annotate(unit: Unit, choice: Choice, context: PassContext) -> None:
    note = need_note(unit.anchor, Sensitivity)
    counts = np.bincount(choice.option, minlength=len(note.options))
    used = [at for at, count in enumerate(counts) if count]
    context.arrays.discard(f"{unit.name}/order")
    if len(used) > 1:
        order = np.argsort(choice.option, kind="stable").astype(np.int32)
        context.arrays.put(f"{unit.name}/order", order)
    annotate(
        unit.anchor,
        BitAllocation(
            unit.name,
            tuple(note.options[at] for at in used),
            tuple(int(counts[at]) for at in used),
            choice.loss,
        ),
    )
