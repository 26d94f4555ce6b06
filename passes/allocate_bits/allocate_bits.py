"""The pass ``allocate-bits``: which rows get which option, inside an exact budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
    all_nodes,
    annotate,
    find_units,
    need_note,
    note_of,
    quantizable,
)
from ...ir.unit_arrays import UnitArrays
from ..engine.emission.cost import (
    class_bytes,
    expansion_bytes,
    order_bytes,
    outlier_bytes,
    resident_bytes,
)
from ..engine.numerics.knapsack import Item
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.chosen_options import chosen_options
from ..engine.pipeline.forecast import AskedBits, Forecast, Judged
from ..engine.pipeline.outlook import Outlook
from ..engine.pipeline.progress import Bar
from ..engine.pipeline.work import Kind, Work
from .ahead import Offered, least_bytes, look_ahead
from .annotations import is_reordered, options_of, write_down
from .budget import Settings
from .clock import Clock
from .clusters import least_bytes as least_bytes_of_clusters
from .decision import Candidate, total_bytes, total_loss
from .ledger import Ledger
from .method import Asked
from .methods import METHODS, SETTINGS
from .outlier_columns import with_outlier_columns
from .plan import Plan
from .timing import Timing

_PRICES = 150  # of a byte that are tried, with those for channels that are kept and for time
_ROW_COPIES = 40  # bytes of a row's losses in all their forms, for each option


@dataclass(frozen=True)
class AllocateBits(Pass):
    """Choose options that fit the budget.

    The budget counts everything that is stored for all units: codes, scales, row orders, and
    the units that stay in float. A table that is both embedding and output head counts once.
    Whatever the method, an allocation beyond the budget is refused.

    - ``method=budget``: the least predicted divergence, by the losses of every row. Input
      channels stay in 16 bits if they are worth their bytes and ``annotate-sensitivity``
      evaluated them (``keep``).
    - ``method=uniform``: the same option for every unit, the largest that fits (for
      comparison).
    - ``method=clusters``: k-means on the scores, one cluster for each width of ``bits``, the
      largest centroid first. Sizes and losses play no part.
    - ``method=ratio``: the units with the largest scores get the first of two widths, the
      others the second: a ``share`` of the weights, or as many as fit the budget.

    A unit without an option of its assigned width takes the next wider one.

    Attributes:
        budget: Stored bits per weight over all units.
        method: ``budget``, ``uniform``, ``clusters`` or ``ratio``.
        granularity: ``row`` decides tiles of rows (the default), ``unit`` whole units
            (``budget``).
        fold: Let units with movable output channels share one order of rows, and count no
            bytes for it. ``fold-permutations`` must follow (``budget``).
        bits: Widths to assign, the largest first (``clusters``, ``ratio``).
        share: Share of the weights that gets the first width; by default as much as fits the
            budget (``ratio``).
        latency: Time of the products, at most, relative to the original's: of one token and of
            a prompt for a model with a cache, of a run for any other. By default 1, as far as
            a percent of time costs at most a percent of the loss (``budget``).
        aim: ``loss`` (the default) for the least predicted loss, ``latency`` for the least
            time (``budget``).
        max_loss: Predicted loss, at most (``budget``).
    """

    name: ClassVar[str] = "allocate-bits"
    reads: ClassVar[tuple[type[Annotation], ...]] = (Sensitivity, TensorStats)
    writes: ClassVar[tuple[type[Annotation], ...]] = (
        BitAllocation,
        Budgeted,
        OutlierColumns,
        SharedRows,
    )
    promise: ClassVar[Promise] = Promise.SAME_GRAPH
    budget: float | None = None
    method: str = "budget"
    granularity: str | None = None
    fold: bool | None = None
    bits: tuple[int, ...] | None = None
    share: float | None = None
    latency: float | None = None
    aim: str | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        self._settings()
        if self.budget is not None and not 0 < self.budget <= 64:
            raise UsageError(f"a budget of {self.budget} bits per weight makes no sense")
        if self.budget is None and METHODS[self.method].bounded and self.share is None:
            needed = "share or budget" if self.method == "ratio" else "budget"
            raise UsageError(f"allocate-bits{{method={self.method}}} needs {needed}")

    def _settings(self) -> Any:
        """Returns the method's own options; refuses those of others."""
        return chosen_options(self, "method", SETTINGS)

    def forecast(self, before: Forecast) -> Forecast:
        after = super().forecast(before)
        if self.budget is not None:
            after = after.telling(AskedBits(self.budget))
        return after if self.fold else after.changed(drops=[SharedRows])

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses a budget below the size of the smallest options of all units."""
        judged = forecast.get(Judged) or Judged()
        if judged.keeps and self.method != "budget":
            raise UsageError(
                f"allocate-bits{{method={self.method}}} keeps no channels in 16 bits",
                hint="leave out keep of annotate-sensitivity",
            )
        if self.share is not None:
            return  # what this takes, no budget decides
        table, offered = context.capabilities, _offered(model, context, judged)
        if self.method == "clusters" and judged.by_block:
            bits = self._settings().bits
            smallest = least_bytes_of_clusters(model, offered, bits)
        else:
            smallest = sum(
                least_bytes(unit, options, table) for unit, options in offered.items()
            )
        ledger = Ledger.of(model, offered, table, self.budget)
        if not offered and not ledger.settled_bytes:
            raise nothing_to_store(model)
        ledger.check(smallest, self.method, table, at_least=self.method == "clusters")
        settings = self._settings()
        if isinstance(settings, Settings):
            settings.timing.check_early(offered, context)

    def outlook(
        self, model: ir.Model, context: PassContext, forecast: Forecast
    ) -> Outlook | None:
        """The feasible range; and what is lost where, if an earlier run found that out."""
        offered = _offered(model, context, forecast.get(Judged) or Judged())
        ledger = Ledger.of(model, offered, context.capabilities, self.budget)
        known = all(note_of(unit.notes, Sensitivity) is not None for unit in offered)
        items = [self._candidate(unit, context).item for unit in offered] if known else []
        return look_ahead(offered, items, ledger, context.capabilities)

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """Every option of every row, once for each price of a byte that is tried."""
        judged = forecast.get(Judged) or Judged()
        looked_at = sum(
            unit.shape[0] * len(judged.offer.options(unit, context.capabilities))
            for unit in quantizable(model)
        )
        prices = _PRICES if self.method == "budget" else 1
        return Work({Kind.CHOICE: float(looked_at * prices)}, held=_ROW_COPIES * looked_at)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates every unit with its options and the order of its rows."""
        judged = [one for one in find_units(model) if note_of(one.notes, Sensitivity)]
        settled = note_of(model, Settled)
        if not judged and not (settled and settled.weights):
            raise nothing_to_store(model)
        ledger = Ledger.of(model, judged, context.capabilities, self.budget)
        with context.progress.bar("allocating bits, prices of a byte", None) as bar:
            plan = self._plan(model, judged, ledger, context, bar)
        candidates, decisions = plan.candidates, plan.decisions
        used = total_bytes(decisions) + _outlier_bytes(candidates)
        ledger.check(used + _tables(candidates), self.method, context.capabilities)
        write_down(decisions, candidates, context)
        outlier_columns = {one.unit.name: one.kept for one in candidates if one.kept}
        if outlier_columns:
            context.report.setdefault(self.name, {})["kept"] = outlier_columns
        taken = [option for one in candidates for option, _ in options_of(one.unit)]
        got = ledger.bits(ledger.fixed_bytes + used + expansion_bytes(taken))
        annotate(
            model,
            Budgeted(
                self.budget if self.budget is not None else got,
                got,
                ledger.bits(_resident_bytes(candidates, ledger, context)),
                ledger.weights,
                total_loss(decisions),
            ),
        )
        return True

    def _plan(
        self,
        model: ir.Model,
        units: Sequence[Unit],
        ledger: Ledger,
        context: PassContext,
        bar: Bar,
    ) -> Plan:
        """Returns the allocation, within the bounds of time and loss that were asked for."""
        candidates = [self._candidate(unit, context) for unit in units]
        clock = None
        if self.method == "budget":
            clock = Clock.of(model, candidates, self.budget, context)
        room = None if ledger.room is None else ledger.room - _tables(candidates)
        harmful: set[str] = set()

        def solve(prices: np.ndarray) -> Plan:
            priced, left = candidates, room
            if clock is not None:
                priced = [clock.priced(one, prices) for one in candidates]
            if left is not None and self.method == "budget":
                priced = with_outlier_columns(priced, left, context.arrays, bar.advance)
                left -= _outlier_bytes(priced)
            asked = Asked(model, priced, left, self._settings(), context, bar.advance, harmful)
            decisions = METHODS[self.method].decide(asked)
            times = clock.taken(decisions, priced) if clock is not None else np.zeros(0)
            return Plan(decisions, priced, times)

        settings = self._settings()
        timing = settings.timing if isinstance(settings, Settings) else Timing()
        return timing.plan(solve, clock, context)

    def _candidate(self, unit: Unit, context: PassContext) -> Candidate:
        note = need_note(unit.notes, Sensitivity)
        _, columns = unit.shape
        options = tuple(Option.parse(text) for text in note.options)
        whole = any(option.is_half for option in options) or _is_whole(unit, options)
        by_row = self.method == "budget" and self.granularity != "unit" and not whole
        sure = need_note(unit.notes, TensorStats).by_row
        item = Item(
            loss=UnitArrays(unit.name, context.arrays).get("loss"),
            row_bytes=np.array([option.row_bytes(columns) for option in options]),
            mixing_bytes=order_bytes(unit.shape[0]),
            tile=context.capabilities.row_tile if by_row and sure else 0,
            class_bytes=np.array(class_bytes(unit, options, context.capabilities)),
        )
        return Candidate(unit, options, item, note_of(unit.notes, Score))


def _is_whole(unit: Unit, options: Sequence[Option]) -> bool:
    """Tells whether an integer kernel could take the rows of a unit only all together."""
    return unit.uses[0].takes_floats and any(option.integer for option in options)


def _offered(model: ir.Model, context: PassContext, judged: Judged) -> Offered:
    """Returns the units that the target can store, with what they will be judged under."""
    table = context.capabilities
    offered = {unit: judged.offer.options(unit, table) for unit in quantizable(model)}
    return {unit: options for unit, options in offered.items() if options}


def nothing_to_store(model: ir.Model) -> InfeasibleBudget:
    """Returns the refusal of a model without weights that any codes can stand for."""
    trees = sum(node.domain == "ai.onnx.ml" for node in all_nodes(model.graph))
    what = f": its {trees} nodes of classic machine learning hold no matrices" if trees else ""
    return InfeasibleBudget(
        f"nothing in this model can be quantized{what}", hint="run: mpqc inspect MODEL"
    )


def _tables(candidates: Sequence[Candidate]) -> int:
    """Returns the bytes of tables that expand codes at load, were every option taken."""
    return expansion_bytes(option for one in candidates for option in one.options)


def _outlier_bytes(candidates: Sequence[Candidate]) -> int:
    return sum(outlier_bytes(one.unit, one.kept) for one in candidates)


def _resident_bytes(
    candidates: Sequence[Candidate], ledger: Ledger, context: PassContext
) -> int:
    """Returns the bytes of the chosen options in memory, after loading."""
    return (
        ledger.settled_bytes
        + ledger.float_bytes
        + sum(
            resident_bytes(
                one.unit,
                options_of(one.unit),
                context.capabilities,
                reordered=is_reordered(one.unit, context),
                kept=one.kept,
            )
            for one in candidates
        )
    )
