"""The pass ``allocate-channels``: more bits for input channels with large activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from ...ir import (
    Annotation,
    Budgeted,
    Capabilities,
    ChannelAllocation,
    InfeasibleBudget,
    LeftInFloat,
    Option,
    OutlierColumns,
    OutlierEntries,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    find_units,
    note_of,
)
from ...ir.analysis.offered import obstacle
from ...ir.text_form import did_you_mean
from ..engine.emission.cost import expansion_bytes
from ..engine.execution.parallel import for_each
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.forecast import Forecast, OutlierShares
from ..engine.statistics.quadratic import Quadratic
from .channel_cost import LEVELS, ChannelForm, form_of, shared_bytes
from .split_outliers import planned

_STEPS = 48  # halvings of the interval in which the average is searched


@dataclass(frozen=True)
class _Plan:
    """One unit and how its channels may be stored.

    Attributes:
        unit: The unit.
        form: Levels and widths on offer.
        outliers: Channels and single weights that stay in 16 bits.
        spread: Share of the channels that gain bits where the average is whole.
    """

    unit: Unit
    form: ChannelForm
    outliers: tuple[int, int]
    spread: float

    @property
    def channels(self) -> int:
        """Number of channels that get a width."""
        return self.unit.shape[1] - self.outliers[0]

    def counts(self, average: float) -> list[int]:
        """Returns how many channels get each width on offer, for ``average`` bits at most."""
        widths = self.form.widths
        if self.form.whole:  # one width for all: rounding down would spoil a table
            at = next((i for i, w in enumerate(widths) if w >= average), len(widths) - 1)
            return [self.channels * (i == at) for i in range(len(widths))]
        step = self.form.group if self.form.levels == "even" else 1
        return channel_counts(self.channels, average, widths, self.spread, step)

    def used(self, average: float) -> list[int]:
        """Returns the widths that any channel gets."""
        counts = self.counts(average)
        return [bits for bits, n in zip(self.form.widths, counts, strict=True) if n]

    def bytes(self, average: float) -> int:
        """Returns the most bytes that the unit takes with ``average`` bits per channel."""
        counts = self.counts(average)
        return self.form.unit_bytes(self.unit, self.form.widths, counts, self.outliers)

    def resident(self, average: float) -> int:
        """Returns the bytes that the unit takes in memory, estimated."""
        counts = self.counts(average)
        return self.form.resident_bytes(self.unit, self.form.widths, counts, self.outliers)


def channel_counts(
    channels: int, average: float, widths: Sequence[int], spread: float, step: int = 1
) -> list[int]:
    """Returns how many channels get each width, with a mean of ``average`` bits at most.

    A fractional average lies between two widths, which share the channels. A whole one leaves
    the channels at one width, but for the share ``spread`` that gains what others give up.

    Args:
        channels: How many there are.
        average: Bits, cut to the range of ``widths``.
        widths: Ascending.
        spread: Share of the channels that gain bits where the average is one of ``widths``.
        step: Channels that leave the middle come in multiples of this.

    >>> channel_counts(50, 2.2, (1, 2, 3, 4), 0.1)
    [0, 40, 10, 0]
    >>> channel_counts(50, 3, (1, 2, 3, 4), 0.1)
    [0, 5, 40, 5]
    """
    average = min(max(average, widths[0]), widths[-1])
    at = max(i for i, width in enumerate(widths) if width <= average)
    counts = [0] * len(widths)
    if average > widths[at]:
        share = (average - widths[at]) / (widths[at + 1] - widths[at])
        counts[at + 1] = int(share * channels + 1e-9) // step * step
    elif 0 < at < len(widths) - 1:
        up = int(spread * channels + 1e-9) // step * step
        gained = up * (widths[at + 1] - widths[at])
        down = -(-gained // (widths[at] - widths[at - 1]))
        down = -(-down // step) * step
        if up + down <= channels:
            counts[at - 1], counts[at + 1] = down, up
    counts[at] = channels - sum(counts)
    return counts


@dataclass(frozen=True)
class AllocateChannels(Pass):
    """Give input channels with large activations more bits than the others.

    The channels of a unit (the columns of its rows x columns matrix) are ranked by their
    activation norm ``E[c_t x_j^2]``, the diagonal of the calibrated Hessian. With an average
    of 2.2 bits, a fifth of them gets 3 bits and the rest 2. With an integer average b, most
    get b; the share ``spread`` with the largest norms gets one bit more, and as many with the
    smallest norms one bit less.

    ``budget`` chooses the largest average, the same for all units, with which everything
    stored fits the budget: indices, codebooks, scales, orders, outliers of ``split-outliers``,
    and the units that stay in float.

    ``levels`` says which values a channel may hold. ``free``: its own float16 codebook, which
    no kernel can read; the runtime expands it to floats when it loads the model. ``grid8`` and
    ``grid4``: a codebook of integers of 8 or 4 bits, times one scale per row or one for every
    ``group`` columns, which the runtime expands into an ordinary MatMulNBits. ``even``: no
    codebook; the channels of one width become a MatMulNBits of that width, for the widths that
    the target has kernels for.

    Source: CMPQ (arXiv 2410.13056).

    Attributes:
        bits: Average width of an index, over the channels that are not outliers.
        budget: Stored bits per weight over all units; give either this or ``bits``.
        levels: ``free``, ``grid4``, ``grid8`` or ``even``.
        spread: Share of the channels that gain a bit if the average is an integer.
        group: Columns that share a scale, 0 for one scale per row; by default 64, and 0 on a
            grid of 8 bits. Free levels have no scales.
        expand: Allow storage that takes more room in memory than in the file, as a file budget
            does: codebooks, and even levels of widths that a wider kernel has to run.
    """

    name: ClassVar[str] = "allocate-channels"
    reads: ClassVar[tuple[type[Annotation], ...]] = (TensorStats,)
    writes: ClassVar[tuple[type[Annotation], ...]] = (ChannelAllocation, Budgeted, LeftInFloat)
    promise: ClassVar[Promise] = Promise.SAME_GRAPH
    bits: float | None = None
    budget: float | None = None
    levels: str = "free"
    spread: float = 0.1
    group: int | None = None
    expand: bool = False

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.budget is None):
            raise UsageError(
                "allocate-channels wants either bits or budget",
                hint="bits is the average width of an index, budget counts all that is stored",
            )
        if self.levels not in LEVELS:
            raise UsageError(
                f"no levels {self.levels!r}", hint=did_you_mean(self.levels, LEVELS)
            )
        if self.group and self.levels == "free":
            raise UsageError("free levels have no scales: leave out group")
        if self.group == 0 and self.levels == "even":
            raise UsageError("kernels want a scale for every group: even levels need a group")
        if self.bits is not None and not 1 <= self.bits <= 8:
            raise UsageError(f"an average of {self.bits} bits is not between 1 and 8")
        if self.budget is not None and not 0 < self.budget <= 64:
            raise UsageError(f"a budget of {self.budget} bits per weight makes no sense")
        if not 0 <= self.spread <= 0.5:
            raise UsageError(f"a spread of {self.spread} is not a share between 0 and 0.5")

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses a budget that the smallest widths exceed."""
        self._check_target(context.capabilities)
        if self.budget is None:
            return
        self._check_expansion()
        units = find_units(model)
        shares = forecast.get(OutlierShares) or OutlierShares()
        plans = [
            _Plan(unit, form, planned(unit, shares), self.spread)
            for unit in units
            if not unit.reason and (form := self._form(unit, context.capabilities))
        ]
        self._average(self.budget, units, plans)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates every unit with its widths and the order of its channels."""
        self._check_target(context.capabilities)
        self._check_expansion()
        units = find_units(model)
        plans = [plan for unit in units if (plan := self._plan(unit, context)) is not None]
        if not plans:
            raise _nothing()
        average = self.bits
        if self.budget is not None:
            average = self._average(self.budget, units, plans)
            weights = sum(unit.size for unit in units)
            got = self._total(average, units, plans) * 8 / weights
            resident = _resident(average, units, plans) * 8 / weights
            annotate(model, Budgeted(self.budget, got, resident, weights, 0.0))
        assert average is not None

        def decide(plan: _Plan) -> float:
            return _annotate(plan, average, context)

        sums = for_each(decide, plans, context.progress, "ranking channels")
        channels = sum(plan.channels for plan in plans)
        context.report[self.name] = {
            "levels": self.levels,
            "average": average,
            "got": sum(sums) / channels,
        }
        return True

    def _check_target(self, table: Capabilities) -> None:
        if self.levels != "free" and table.lowering != "lower-matmul-nbits":
            raise UsageError(
                f"{table.target} has no kernels for {self.levels} levels",
                hint="take levels=free, or another target",
            )

    def _check_expansion(self) -> None:
        if self.budget is not None and self.levels != "even" and not self.expand:
            raise UsageError(
                f"a budget bounds memory too, and {self.levels} levels take more there",
                hint="give --file-budget instead of --budget, or take levels=even",
            )

    def _form(self, unit: Unit, table: Capabilities) -> ChannelForm | None:
        group = LEVELS[self.levels] if self.group is None else self.group
        return form_of(unit, self.levels, group, table, expand=self.expand)

    def _plan(self, unit: Unit, context: PassContext) -> _Plan | None:
        if unit.reason or note_of(unit.notes, TensorStats) is None:
            return None
        table, form = context.capabilities, self._form(unit, context.capabilities)
        if form is None:
            rows, columns = unit.shape
            none = (
                f"{table.target} has no kernel for {self.levels} levels of {rows} x {columns}"
            )
            annotate(unit.notes, LeftInFloat(unit.name, obstacle(unit) or none))
            return None
        columns_note = note_of(unit.notes, OutlierColumns)
        entries_note = note_of(unit.notes, OutlierEntries)
        outliers = (
            columns_note.columns if columns_note else 0,
            entries_note.entries if entries_note else 0,
        )
        return _Plan(unit, form, outliers, self.spread)

    def _average(self, budget: float, units: list[Unit], plans: list[_Plan]) -> float:
        """Returns the largest average width that fits the budget."""
        if not plans:
            raise _nothing()
        weights = sum(unit.size for unit in units)
        room = int(budget * weights / 8)
        widths = sorted({width for plan in plans for width in plan.form.widths})
        low, high = float(widths[0]), float(widths[-1])
        if self._total(high, units, plans) <= room:
            return high
        smallest = self._total(low, units, plans)
        if smallest > room:
            least = math.ceil(smallest * 8 / weights * 1000) / 1000
            raise InfeasibleBudget(
                f"{budget} stored bits per weight cannot be reached: "
                f"the smallest is {least:.3f}",
                hint=f"ask for --budget {least:.3f} or more, or for other levels",
                smallest=least,
            )
        for _ in range(_STEPS):
            middle = (low + high) / 2
            fits = self._total(middle, units, plans) <= room
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _total(self, average: float, units: list[Unit], plans: list[_Plan]) -> int:
        planned = {plan.unit.name for plan in plans}
        kept = sum(_float_bytes(unit) for unit in units if unit.name not in planned)
        expanding = [plan for plan in plans if plan.form.levels != "even"]
        widths = {width for plan in expanding for width in plan.used(average)}
        shared = shared_bytes(widths, (plan.unit.shape[0] for plan in expanding))
        shared += expansion_bytes(
            Option(width, plan.form.group)
            for plan in plans
            if plan.form.levels == "even"
            for width in plan.used(average)
        )
        return kept + shared + sum(plan.bytes(average) for plan in plans)


def _nothing() -> InfeasibleBudget:
    return InfeasibleBudget(
        "nothing in this model can be quantized", hint="run: mpqc inspect MODEL"
    )


def _resident(average: float, units: list[Unit], plans: list[_Plan]) -> int:
    planned = {plan.unit.name for plan in plans}
    kept = sum(_float_bytes(unit) for unit in units if unit.name not in planned)
    return kept + sum(plan.resident(average) for plan in plans)


def _float_bytes(unit: Unit) -> int:
    return int(unit.tensor.nbytes)


def _annotate(plan: _Plan, average: float, context: PassContext) -> float:
    """Writes down what a unit got; returns the bits of all its channels."""
    unit, arrays = plan.unit, context.arrays
    energy = Quadratic.of(unit, arrays).energy()
    if plan.outliers[0]:
        columns = arrays.get(f"{unit.name}/outliers/columns").astype(np.int64)
        energy[torch.from_numpy(columns)] = -1
    # The largest norms come last: so do the widest channels.
    ranked = energy.argsort(stable=True, descending=True).flip(0)[plan.outliers[0] :]
    counts = plan.counts(average)
    parts = [part.sort().values for part in torch.split(ranked, counts)]
    arrays.put(f"{unit.name}/channels", torch.cat(parts).numpy().astype(np.int32))
    used = [at for at, count in enumerate(counts) if count]
    bits = tuple(plan.form.widths[at] for at in used)
    kept = tuple(counts[at] for at in used)
    note = ChannelAllocation(unit.name, plan.form.levels, plan.form.group, bits, kept)
    annotate(unit.notes, note)
    return float(sum(b * n for b, n in zip(bits, kept, strict=True)))
