"""The pass ``allocate-bits``: which rows get which option, inside an exact budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir import (
    Annotation,
    BitAllocation,
    Budgeted,
    InfeasibleBudget,
    Option,
    Sensitivity,
    SharedOrder,
    SharedRows,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    drop_note,
    find_shared_orders,
    find_units,
    need_note,
    note_of,
)
from ..ir.text_form import did_you_mean
from .annotate_sensitivity import AnnotateSensitivity
from .lowering.cost import overhead_bytes
from .machinery.base import Pass, PassContext
from .numerics.chain import Joint
from .numerics.knapsack import Choice, Item, allocate, smallest_bytes
from .rewriting.regrouping import regrouped_error
from .sensitivity.offered import offered_options

GRANULARITIES = ("row", "unit")
_MOST_GROWTH = 1.1  # of a reader's error: beyond this its columns had better stay


@dataclass(frozen=True)
class _Decision:
    """One or more units that are decided together.

    Attributes:
        units: The units.
        joint: How they look to the allocator.
        group: Why they are: their order of rows is to be folded. None for a unit on its own.
    """

    units: tuple[Unit, ...]
    joint: Joint
    group: SharedOrder | None

    def annotate(self, choice: Choice, context: PassContext) -> None:
        """Writes down what the units got, and the order of their rows."""
        order = np.argsort(choice.option, kind="stable").astype(np.int32)
        mixed = len(np.unique(choice.option)) > 1
        for unit, part in zip(self.units, self.joint.split(choice), strict=True):
            _annotate(unit, part, order, context)
            drop_note(unit.anchor, SharedRows)
            if self.group is not None and mixed:
                annotate(unit.anchor, SharedRows(unit.name, self.units[0].name))


@dataclass(frozen=True)
class AllocateBits(Pass):
    """Choose options that fit the budget at the least predicted divergence.

    The budget counts everything that is stored for all units: codes, scales, row orders, and
    the units that stay in float. A table that serves as embedding and output head counts once.

    Attributes:
        budget: Stored bits per weight over all units.
        granularity: ``row`` decides tiles of rows, ``unit`` whole units.
        uniform: Give every unit the same option, the largest that fits (for comparison).
        fold: Let units whose output channels may move share one order of rows, and count no
            bytes for it. ``fold-permutations`` has to follow.
    """

    name: ClassVar[str] = "allocate-bits"
    reads: ClassVar[tuple[type[Annotation], ...]] = (Sensitivity, TensorStats)
    writes: ClassVar[tuple[type[Annotation], ...]] = (BitAllocation, Budgeted, SharedRows)
    budget: float
    granularity: str = "row"
    uniform: bool = False
    fold: bool = False

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            hint = did_you_mean(self.granularity, GRANULARITIES)
            raise UsageError(f"no granularity {self.granularity!r}", hint=hint)
        if not 0 < self.budget <= 64:
            raise UsageError(f"a budget of {self.budget} bits per weight makes no sense")

    def foresee(self, model: ir.Model, context: PassContext, before: Sequence[Pass]) -> None:
        """Refuses a budget below what the smallest options of all units take."""
        groups = [one.groups for one in before if isinstance(one, AnnotateSensitivity)]
        fixed, smallest, kept, weights = 0, 0, 0, 0
        for unit in find_units(model):
            weights += unit.size
            options: list[Option] = []
            if not unit.reason:
                options = offered_options(unit, context.capabilities, *groups[-1:])
            if options:
                smallest += options[0].row_bytes(unit.shape[1]) * unit.shape[0]
                fixed += overhead_bytes(unit, 1)
            else:
                kept += _float_bytes(unit)
        if smallest + fixed + kept > int(self.budget * weights / 8):
            _refuse(self.budget, smallest + fixed + kept, kept, weights)

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
        budget = int(self.budget * weights / 8) - fixed
        decisions, choices = self._solve(model, chosen, budget, context)
        if choices is None:
            smallest = smallest_bytes([one.joint.item for one in decisions])
            _refuse(self.budget, smallest + fixed, kept, weights)
        assert choices is not None
        for decision, choice in zip(decisions, choices, strict=True):
            decision.annotate(choice, context)
        used = fixed + sum(choice.bytes for choice in choices)
        loss = sum(choice.loss for choice in choices)
        annotate(model, Budgeted(self.budget, used * 8 / weights, weights, loss))
        return True

    def _solve(
        self, model: ir.Model, chosen: Sequence[Unit], budget: int, context: PassContext
    ) -> tuple[list[_Decision], list[Choice] | None]:
        """Allocates, without the groups that turn out to do harm."""
        groups = self._groups(model, chosen)
        while True:
            decisions = self._decisions(chosen, groups, context)
            items = [one.joint.item for one in decisions]
            choices = _uniform(items, budget) if self.uniform else allocate(items, budget)
            harmless = _harmless(decisions, choices, context) if choices else groups
            if len(harmless) == len(groups):
                return decisions, choices
            groups = harmless

    def _groups(self, model: ir.Model, chosen: Sequence[Unit]) -> list[SharedOrder]:
        """Returns the shared orders that rows with different options may use."""
        if not self.fold:
            return []
        free = {unit.name for unit in chosen if self._by_row(unit)}
        found = find_shared_orders(model).found
        return [one for one in found if {unit.name for unit in one.producers} <= free]

    def _decisions(
        self, chosen: Sequence[Unit], groups: Sequence[SharedOrder], context: PassContext
    ) -> list[_Decision]:
        """Returns what is decided together: the producers of a group, all others alone."""
        by_name = {unit.name: group for group in groups for unit in group.producers}
        decisions: dict[str, _Decision] = {}
        for unit in chosen:
            group = by_name.get(unit.name)
            if group is None:
                joint = Joint.alone(self._item(unit, context))
                decisions[unit.name] = _Decision((unit,), joint, None)
            elif group.name not in decisions:
                joint = Joint.of([self._item(one, context) for one in group.producers])
                decisions[group.name] = _Decision(group.producers, joint, group)
        return list(decisions.values())

    def _by_row(self, unit: Unit) -> bool:
        """Tells whether rows of ``unit`` may get different options."""
        sure = need_note(unit.anchor, TensorStats).by_row
        return self.granularity == "row" and sure and not self.uniform

    def _item(self, unit: Unit, context: PassContext) -> Item:
        note = need_note(unit.anchor, Sensitivity)
        _, columns = unit.shape
        options = [Option.parse(text) for text in note.options]
        return Item(
            loss=context.arrays.get(f"{unit.name}/loss"),
            row_bytes=np.array([option.row_bytes(columns) for option in options]),
            mixing_bytes=overhead_bytes(unit, len(options)) - overhead_bytes(unit, 1),
            tile=context.capabilities.row_tile if self._by_row(unit) else 0,
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


def _harmless(
    decisions: Sequence[_Decision], choices: Sequence[Choice], context: PassContext
) -> list[SharedOrder]:
    """Returns the groups whose order does not spoil the rounding of those that read it."""
    parts = {
        unit.name: part
        for decision, choice in zip(decisions, choices, strict=True)
        for unit, part in zip(decision.units, decision.joint.split(choice), strict=True)
    }

    def growth(unit: Unit, order: np.ndarray) -> float:
        note = note_of(unit.anchor, Sensitivity)
        if note is None:
            return 1.0
        option = note.options[int(np.bincount(parts[unit.name].option).argmax())]
        return regrouped_error(unit, order, Option.parse(option), context.arrays)

    def is_harmless(group: SharedOrder, choice: Choice) -> bool:
        order = np.argsort(choice.option, kind="stable")
        return bool((np.diff(order) == 1).all()) or all(
            growth(unit, order) <= _MOST_GROWTH for unit in group.consumers
        )

    return [
        decision.group
        for decision, choice in zip(decisions, choices, strict=True)
        if decision.group is not None and is_harmless(decision.group, choice)
    ]


def _annotate(unit: Unit, choice: Choice, order: np.ndarray, context: PassContext) -> None:
    note = need_note(unit.anchor, Sensitivity)
    counts = np.bincount(choice.option, minlength=len(note.options))
    used = [at for at, count in enumerate(counts) if count]
    context.arrays.discard(f"{unit.name}/order")
    if len(used) > 1:
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
