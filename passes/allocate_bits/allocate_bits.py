"""The pass ``allocate-bits``: which rows get which option, inside an exact budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...ir import (
    Annotation,
    BitAllocation,
    Budgeted,
    InfeasibleBudget,
    Option,
    OutlierColumns,
    Score,
    Sensitivity,
    Settled,
    SharedRows,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    drop_note,
    find_units,
    need_note,
    note_of,
)
from ...ir.text_form import did_you_mean
from ..annotate_sensitivity.annotate_sensitivity import AnnotateSensitivity
from ..annotate_sensitivity.metric import METRICS
from ..engine.emission.cost import (
    expansion_bytes,
    input_bytes,
    kept_bytes,
    overhead_bytes,
    resident_bytes,
)
from ..engine.numerics.knapsack import Choice, Item
from ..engine.pipeline.base import Pass, PassContext
from .clusters import least_bytes
from .decision import Candidate, Decision, total_bytes, total_loss
from .kept import with_kept
from .method import Asked, check_settings, decide

GRANULARITIES = ("row", "unit")


@dataclass(frozen=True)
class AllocateBits(Pass):
    """Choose options that fit the budget.

    The budget counts everything that is stored for all units: codes, scales, row orders, and
    the units that stay in float. A table that serves as embedding and output head counts once.
    Whatever the method, an allocation beyond the budget is refused.

    - ``method=budget``: at the least predicted divergence, by the losses of every row. Input
      channels stay in 16 bits where that is worth their bytes and ``annotate-sensitivity`` was
      asked to look at it (``keep``).
    - ``method=uniform``: every unit the same option, the largest that fits (for comparison).
    - ``method=clusters``: k-means on the scores, one cluster for each width of ``bits``, the
      largest centroid first. Sizes and losses play no part.
    - ``method=ratio``: the units with the largest scores get the first of two widths, the
      others the second: a ``share`` of the weights, or as many as fit the budget.

    A unit that has no option of the width that it is to get takes the next wider one.

    Attributes:
        budget: Stored bits per weight over all units.
        method: ``budget``, ``uniform``, ``clusters`` or ``ratio``.
        granularity: ``row`` decides tiles of rows, ``unit`` whole units (``budget``).
        fold: Let units whose output channels may move share one order of rows, and count no
            bytes for it. ``fold-permutations`` has to follow (``budget``).
        bits: Widths to give, the largest first (``clusters``, ``ratio``).
        share: Share of the weights that gets the first width; as much as fits the budget when
            it is left out (``ratio``).
    """

    name: ClassVar[str] = "allocate-bits"
    reads: ClassVar[tuple[type[Annotation], ...]] = (Sensitivity, TensorStats)
    writes: ClassVar[tuple[type[Annotation], ...]] = (
        BitAllocation,
        Budgeted,
        OutlierColumns,
        SharedRows,
    )
    budget: float | None = None
    method: str = "budget"
    granularity: str = "row"
    fold: bool = False
    bits: tuple[int, ...] = ()
    share: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.granularity not in GRANULARITIES:
            hint = did_you_mean(self.granularity, GRANULARITIES)
            raise UsageError(f"no granularity {self.granularity!r}", hint=hint)
        if self.budget is not None and not 0 < self.budget <= 64:
            raise UsageError(f"a budget of {self.budget} bits per weight makes no sense")
        if self.share is not None and not 0 <= self.share <= 1:
            raise UsageError(f"a share of {self.share} is not between 0 and 1")
        if self.fold and self.granularity == "unit":
            raise UsageError(
                "whole units have no rows to put in a shared order", hint="say fold=false"
            )
        self._check_bits()

    def _check_bits(self) -> None:
        falling = all(a > b for a, b in zip(self.bits, self.bits[1:], strict=False))
        if not falling or any(bits < 1 for bits in self.bits):
            raise UsageError("bits have to fall, like [8, 4]", hint="name the widest first")
        if self.method == "ratio" and len(self.bits) != 2:
            raise UsageError("allocate-bits{method=ratio} needs two bits, like bits=[4, 2]")

    def foresee(self, model: ir.Model, context: PassContext, before: Sequence[Pass]) -> None:
        """Refuses a budget below what the smallest options of all units take."""
        judges = [one for one in before if isinstance(one, AnnotateSensitivity)]
        judge = judges[-1] if judges else AnnotateSensitivity()
        if judge.keep and self.method != "budget":
            raise UsageError(
                f"allocate-bits{{method={self.method}}} keeps no channels in 16 bits",
                hint="leave out keep of annotate-sensitivity",
            )
        if self.share is not None:
            return  # what this takes, no budget decides
        fixed, kept, weights, offered = 0, 0, 0, {}
        for unit in find_units(model):
            weights += unit.size
            options = [] if unit.reason else judge.options(unit, context.capabilities)
            if options:
                offered[unit] = options
                fixed += overhead_bytes(unit, 1) + input_bytes(unit, context.capabilities)
            else:
                kept += _float_bytes(unit)
        by_block = self.method == "clusters" and METRICS[judge.metric].by_block
        if by_block:
            smallest = least_bytes(model, offered, self.bits)
        else:
            smallest = sum(
                options[0].row_bytes(unit.shape[1]) * unit.shape[0]
                for unit, options in offered.items()
            )
        self._check(smallest + fixed + kept, kept, weights, at_least=self.method == "clusters")

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates every unit with its options and the order of its rows."""
        units = find_units(model)
        chosen = [unit for unit in units if note_of(unit.anchor, Sensitivity) is not None]
        settled = note_of(model, Settled) or Settled(0, 0)
        weights = settled.weights + sum(unit.size for unit in units)
        if not chosen and not settled.weights:
            raise InfeasibleBudget(
                "nothing in this model can be quantized", hint="run: mpqc inspect MODEL"
            )
        kept = sum(_float_bytes(unit) for unit in units if unit not in chosen)
        table = context.capabilities
        added = (overhead_bytes(unit, 1) + input_bytes(unit, table) for unit in chosen)
        fixed = settled.bytes + kept + sum(added)
        candidates = [self._candidate(unit, context) for unit in chosen]
        offered = expansion_bytes(option for one in candidates for option in one.options)
        limit = None if self.budget is None else int(self.budget * weights / 8)
        left = None if limit is None else limit - fixed - offered
        if left is not None and self.method == "budget":
            candidates = with_kept(candidates, left, context.arrays)
        kept_apart = sum(kept_bytes(one.unit, one.kept) for one in candidates)
        left = None if left is None else left - kept_apart
        decisions = decide(Asked(model, candidates, left, self, context))
        used = fixed + kept_apart + total_bytes(decisions)
        self._check(used + offered, kept, weights)
        for candidate in candidates:
            _annotate_kept(candidate, context)
        kept_by = {one.unit.name: one.kept for one in candidates if one.kept}
        if kept_by:
            context.report[self.name] = {"kept": kept_by}
        for decision in decisions:
            _annotate(decision, context)
        taken = [option for unit in chosen for option, _ in _taken(unit)]
        got = used + expansion_bytes(taken)
        resident = (
            settled.bytes
            + kept
            + sum(
                resident_bytes(
                    one.unit,
                    _taken(one.unit),
                    reordered=_is_reordered(one.unit, context),
                    kept=one.kept,
                )
                for one in candidates
            )
        )
        bits, in_memory = got * 8 / weights, resident * 8 / weights
        asked = self.budget if self.budget is not None else bits
        loss = total_loss(decisions)
        annotate(model, Budgeted(asked, bits, in_memory, weights, loss))
        return True

    def _candidate(self, unit: Unit, context: PassContext) -> Candidate:
        note = need_note(unit.anchor, Sensitivity)
        _, columns = unit.shape
        options = tuple(Option.parse(text) for text in note.options)
        whole = any(option.is_half for option in options)
        by_row = self.method == "budget" and self.granularity == "row" and not whole
        sure = need_note(unit.anchor, TensorStats).by_row
        item = Item(
            loss=context.arrays.get(f"{unit.name}/loss"),
            row_bytes=np.array([option.row_bytes(columns) for option in options]),
            mixing_bytes=overhead_bytes(unit, len(options)) - overhead_bytes(unit, 1),
            tile=context.capabilities.row_tile if by_row and sure else 0,
        )
        return Candidate(unit, options, item, note_of(unit.anchor, Score))

    def _check(self, used: int, kept: int, weights: int, *, at_least: bool = False) -> None:
        """Refuses an allocation beyond the budget.

        Args:
            used: Bytes that it takes.
            kept: Bytes of them that are of units in float.
            weights: All weights.
            at_least: Whether it may turn out to take more.

        Raises:
            InfeasibleBudget: It takes more bytes; the smallest budget that works is named.
        """
        if self.budget is None or used <= int(self.budget * weights / 8):
            return
        least = int(np.ceil(used * 8 / weights * 1000)) / 1000
        what = "" if self.method == "budget" else f" with method={self.method}"
        why = f"; {kept} bytes of it are units that stay in float" if kept else ""
        raise InfeasibleBudget(
            f"{self.budget} stored bits per weight cannot be reached: "
            f"the smallest{what} is {'at least ' if at_least else ''}{least:.3f}{why}",
            hint=f"ask for --budget {least:.3f} or more",
        )


def _taken(unit: Unit) -> list[tuple[Option, int]]:
    """Returns the options that the unit got, with the number of rows that have each."""
    note = need_note(unit.anchor, BitAllocation)
    return list(zip(map(Option.parse, note.options), note.counts, strict=True))


def _is_reordered(unit: Unit, context: PassContext) -> bool:
    """Tells whether the unit will store an order of its own."""
    is_shared = note_of(unit.anchor, SharedRows) is not None
    return f"{unit.name}/order" in context.arrays and not is_shared


def _float_bytes(unit: Unit) -> int:
    tensor = unit.weight.const_value
    assert tensor is not None
    return int(tensor.nbytes)


def _annotate_kept(candidate: Candidate, context: PassContext) -> None:
    """Writes down which input channels a unit keeps."""
    unit, name = candidate.unit, f"{candidate.unit.name}/outliers/columns"
    drop_note(unit.anchor, OutlierColumns)
    context.arrays.discard(name)
    if candidate.kept:
        context.arrays.put(name, candidate.kept_columns(context.arrays))
        annotate(unit.anchor, OutlierColumns(unit.name, candidate.kept))


def _annotate(decision: Decision, context: PassContext) -> None:
    """Writes down what the units got, and the order of their rows."""
    order = np.argsort(decision.places, kind="stable").astype(np.int32)
    mixed = len(np.unique(decision.places)) > 1
    for unit, choice in zip(decision.units, decision.choices, strict=True):
        _annotate_unit(unit, choice, order, context)
        drop_note(unit.anchor, SharedRows)
        if decision.group is not None and mixed:
            annotate(unit.anchor, SharedRows(unit.name, decision.units[0].name))


def _annotate_unit(
    unit: Unit, choice: Choice, order: np.ndarray, context: PassContext
) -> None:
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
