"""The pass ``quantize-weights``: rounds every unit to the options that it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from ...ir import (
    HALF,
    Annotation,
    BitAllocation,
    LeftInFloat,
    LocalHessian,
    Option,
    QuantSpec,
    SharedRows,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    need_note,
    note_of,
    quantizable,
)
from ...ir.analysis.attention import find_attention
from ...ir.analysis.offered import expands_to_floats, mixed_options
from ...ir.text_form import did_you_mean
from ...ir.unit_arrays import RowClass, UnitArrays
from ..engine.emission.emitter import Names
from ..engine.emission.half import store_as_half
from ..engine.execution.by_unit import each_unit
from ..engine.execution.extent import Extent
from ..engine.numerics.coupled_rows import round_coupled
from ..engine.numerics.doubles import total
from ..engine.numerics.factor import Factor
from ..engine.numerics.gptq import Rounded, as_half, nearest, round_rows, working_bytes
from ..engine.numerics.row_hessians import Part, round_parts
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.forecast import AskedBits, Couplings, Forecast, Judged
from ..engine.pipeline.work import Kind, Work
from ..engine.statistics.coupling import between_rows, read_coupling
from ..engine.statistics.integer_rounding import integer_losses
from ..engine.statistics.local_hessians import LocalHessians
from ..engine.statistics.predicted import report_rounding_loss
from ..engine.statistics.quadratic import Quadratic, outlier_columns
from ..engine.statistics.reweighted import WeightedHessians
from ..engine.statistics.rounding_work import (
    held_together,
    may_couple,
    unit_work,
)
from ..engine.statistics.sequence import Hessians, check_can_run, in_sequence
from ..engine.statistics.simulated import simulate
from .rounded_unit import RoundedUnit

ROUNDINGS = ("gptq", "nearest")
SEQUENCES = ("no", "block", "layer")
_LEFT_BYTES = 8.0  # of a weight: its value in float32, its code, and room between them
_USUAL_BITS = 4.0
_HALF = "allocate-bits chose to store it as float16"


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Round weights to codes and scales, and give the graph the values of the codes.

    The result is an ordinary float graph that simulates the quantized one, until a lowering
    pass replaces the weights by their codes. Units with the option float16 are stored as such
    at once, followed by a Cast that the runtime folds when it loads the model.

    Attributes:
        rounding: ``gptq`` compensates errors against the Hessian; ``nearest`` does not.
        refinements: Rounds of least-squares scales and coordinate descent after GPTQ.
        sequential: ``no`` uses the Hessians as they are. ``block`` gathers them again, block
            by block, on the outputs of the blocks that are already rounded. With ``layer``,
            the units of a block also wait for those that they depend on. Tokens keep the
            weights of ``calibrate``; after ``attention-hessians``, those Hessians are gathered
            again too.
        coupled: Let rows make up for each other's errors, by the interaction that
            ``calibrate{coupled=true}`` gathered; units without it are rounded row by row.
        samples: Gather again on this many samples only, the first ones; 0 takes all
            (``sequential=block``, ``layer``).
    """

    name: ClassVar[str] = "quantize-weights"
    reads: ClassVar[tuple[type[Annotation], ...]] = (BitAllocation, TensorStats)
    writes: ClassVar[tuple[type[Annotation], ...]] = (QuantSpec,)
    promise: ClassVar[Promise] = Promise.SIMULATION
    rounding: str = "gptq"
    refinements: int = 3
    sequential: str = "no"
    coupled: bool = False
    samples: int = 0

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            hint = did_you_mean(self.rounding, ROUNDINGS)
            raise UsageError(f"no rounding {self.rounding!r}", hint=hint)
        if self.sequential not in SEQUENCES:
            hint = did_you_mean(self.sequential, SEQUENCES)
            raise UsageError(f"no sequence {self.sequential!r}", hint=hint)
        if self.rounding == "nearest" and self.sequential != "no":
            raise UsageError(
                "sequential has no effect with rounding=nearest", hint="leave out sequential"
            )
        if self.rounding == "nearest" and self.coupled:
            raise UsageError(
                "coupled has no effect with rounding=nearest", hint="say coupled=false"
            )
        if self.refinements < 0:
            raise UsageError(f"quantize-weights cannot refine {self.refinements} times")
        if self.rounding == "nearest" and self.refinements != type(self).refinements:
            raise UsageError("rounding=nearest refines nothing", hint="leave out refinements")
        if self.samples < 0:
            raise UsageError(f"quantize-weights cannot use {self.samples} samples")
        if self.samples and self.sequential == "no":
            raise UsageError(
                "quantize-weights{samples} is for Hessians that are gathered anew",
                hint="add sequential=block, or leave out samples",
            )

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses what counts on another pass that does not come, or does something else."""
        if self.sequential != "no":
            check_can_run(model, context, str(self))
        if self.coupled:
            _check_coupled(forecast)
        if SharedRows in forecast.notes:
            _refuse_unfolded()

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """Every unit once, at the width that the budget leaves for most of its rows."""
        asked = forecast.get(AskedBits)
        judged = forecast.get(Judged) or Judged()
        bits = asked.bits if asked is not None else _USUAL_BITS
        units, total = quantizable(model), Work()
        for unit in units:
            options = judged.offer.options(unit, context.capabilities)
            mixed = mixed_options(options, unit.shape[1], bits) if options else []
            total += self._unit_work(unit, mixed, context)
        if self.sequential != "no":
            extent, samples = Extent.of(model, context.calibration), context.calibration
            count = 2 * len(samples.first(self.samples)) if samples is not None else 0
            total += Work({Kind.SWEEP: count * extent.multiply_adds(units)})
        weights = sum(unit.size for unit in units)
        held = held_together(units, coupled=self.coupled)
        return Work(total.amounts, held=held, left=weights * _LEFT_BYTES)

    def _unit_work(
        self, unit: Unit, mixed: Sequence[tuple[Option, float]], context: PassContext
    ) -> Work:
        refinements = self.refinements if self.rounding == "gptq" else None
        in_floats = expands_to_floats(unit, context.capabilities)
        return unit_work(unit, mixed, refinements, in_floats, coupled=self.coupled)

    def _cost(self, unit: Unit, context: PassContext) -> float:
        """Returns about how many seconds a unit takes that knows its options."""
        note = need_note(unit.notes, BitAllocation)
        shares = [count / unit.shape[0] for count in note.counts]
        mixed = list(zip(map(Option.parse, note.options), shares, strict=True))
        return self._unit_work(unit, mixed, context).seconds()

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Rounds every unit that has an allocation and sums up what that will cost."""
        units = [u for u in quantizable(model) if note_of(u.notes, BitAllocation) is not None]
        if any(note_of(unit.notes, SharedRows) is not None for unit in units):
            _refuse_unfolded()
        if self.coupled:
            _check_coupling(units, context)

        if self.sequential == "no":
            rounded = each_unit(
                self._rounded,
                units,
                model,
                context,
                "rounding",
                need=lambda one: working_bytes(
                    *one.shape, coupled=self.coupled and may_couple(one)
                ),
                cost=lambda one: self._cost(one, context),
            )
            pairs = zip(units, rounded, strict=True)
            losses = [self._keep(unit, one, context) for unit, one in pairs]
        else:
            losses = self._in_sequence(units, model, context)
        names = Names(model)
        for unit in filter(_is_half, units):
            store_as_half(unit, names.free(f"{unit.name}/wide"))
            annotate(unit.notes, LeftInFloat(unit.name, _HALF))
        report_rounding_loss(model, self.name, losses, context)
        return bool(units)

    def _in_sequence(
        self, units: Sequence[Unit], model: ir.Model, context: PassContext
    ) -> list[tuple[float, float]]:
        """Rounds every unit against Hessians of what the units before it have become."""
        check_can_run(model, context, str(self))
        gather, by_layer = _gatherer(model, context), self.sequential == "layer"

        def work(unit: Unit, found: Hessians) -> tuple[float, float]:
            return self._keep(unit, self._rounded(unit, context, found), context)

        return in_sequence(
            model, units, gather, work, context, by_layer=by_layer, samples=self.samples
        )

    def _rounded(
        self, unit: Unit, context: PassContext, found: Hessians | None = None
    ) -> RoundedUnit:
        """Rounds one unit, perhaps in another process; changes nothing.

        Args:
            unit: The unit.
            context: Supplies Hessians.
            found: Hessians to round against instead of some of those.
        """
        note = need_note(unit.notes, BitAllocation)
        columns = outlier_columns(unit, context.arrays)
        quadratic = Quadratic.of(unit, context.arrays, context.device)
        quadratic = quadratic.against(found or {}, unit).keeping(columns)
        weight = torch.from_numpy(unit.matrix()).to(context.device)
        parts = quadratic.parts()
        left = quadratic.hidden(weight)
        classes = UnitArrays(unit.name, context.arrays).row_classes(note.options, note.counts)
        coupling = read_coupling(unit, context.arrays) if self.coupled else None
        coupling = None if coupling is None else coupling.to(context.device)
        stored, signed = torch.empty_like(weight), context.capabilities.signed_scales
        if coupling is None or _is_half(unit):
            in_floats = expands_to_floats(unit, context.capabilities)
            made = [self._round_rows(one, left, parts, in_floats, signed) for one in classes]
        else:
            made = self._round_coupled(classes, left, coupling, parts[0].factor, signed)
        for one, rounded in zip(classes, made, strict=True):
            rows = _places(one, weight)
            if rounded is None:
                stored[rows] = as_half(weight[rows])
            else:
                stored[rows] = rounded.dequantize(one.option.group)
        kept = None
        if len(columns):
            stored = quadratic.completed(weight, stored)
            kept = stored.index_select(1, quadratic.kept_columns()).half()
        loss = total(quadratic.loss(weight, stored))
        if coupling is not None:
            loss += between_rows(coupling, stored - weight, quadratic.hessians[0])
        kernel_loss = _kernel_loss(unit, classes, quadratic, weight, context)
        half = stored if _is_half(unit) else None
        return RoundedUnit.of(made, kept, half, loss, kernel_loss)

    def _keep(
        self, unit: Unit, rounded: RoundedUnit, context: PassContext
    ) -> tuple[float, float]:
        """Stores what rounding made; returns the loss of the weights and of the kernels."""
        note = need_note(unit.notes, BitAllocation)
        rounded.put(UnitArrays(unit.name, context.arrays))
        annotate(unit.notes, replace(note, loss=rounded.loss))
        if rounded.half is not None:
            unit.replace(rounded.half.astype(np.float32))
        else:
            spec = QuantSpec(unit.name, note.options, note.counts, self.rounding)
            annotate(unit.notes, spec)
            simulate(unit, context.arrays)
        return rounded.loss, rounded.kernel_loss

    def _round_rows(
        self,
        one: RowClass,
        left: torch.Tensor,
        parts: Sequence[Part],
        in_floats: bool,
        signed: bool,
    ) -> Rounded | None:
        """Rounds the rows of a class, each by itself; None where they stay in float16."""
        if one.option.is_half:
            return None
        rows = _places(one, left)
        rounder = partial(self._round, one.option, in_floats=in_floats, signed=signed)
        return round_parts(left, rows, parts, rounder)

    def _round_coupled(
        self,
        classes: Sequence[RowClass],
        left: torch.Tensor,
        coupling: torch.Tensor,
        factor: Factor,
        signed: bool,
    ) -> list[Rounded | None]:
        """Rounds all rows of a unit, the coarse ones first, so that finer ones make up."""
        by_width = sorted(range(len(classes)), key=lambda at: classes[at].option.bits)
        coarse_first = [classes[at] for at in by_width]
        made = round_coupled(
            left,
            coupling,
            [_places(one, left) for one in coarse_first],
            [
                partial(self._round, one.option, factor=factor, signed=signed)
                for one in coarse_first
            ],
            [one.option.group for one in coarse_first],
        )
        return [made[by_width.index(at)] for at in range(len(classes))]

    def _round(
        self,
        option: Option,
        weight: torch.Tensor,
        factor: Factor,
        *,
        signed: bool,
        in_floats: bool = False,
    ) -> Rounded:
        bits, group = option.bits, option.group
        if self.rounding == "nearest":
            return nearest(
                weight, bits, group, factor.price, signed=signed, float8=option.float8
            )
        return round_rows(
            weight,
            bits,
            group,
            factor,
            refinements=self.refinements,
            in_floats=in_floats,
            signed=signed,
            float8=option.float8,
        )


def _check_coupled(forecast: Forecast) -> None:
    """Refuses passes before that gather nothing between rows, or round rows differently."""
    if LocalHessian in forecast.notes:
        _refuse_own_hessians()
    couplings = forecast.get(Couplings)
    if couplings is not None and not couplings.gathered:
        raise UsageError(
            "quantize-weights{coupled=true} needs to know how rows act together",
            hint="calibrate{coupled=true}",
        )


def _refuse_own_hessians() -> None:
    raise UsageError(
        "attention-hessians gives rows Hessians of their own, so they cannot be coupled",
        hint="leave out attention-hessians, or coupled=true",
    )


def _check_coupling(units: Sequence[Unit], context: PassContext) -> None:
    """Refuses rows with Hessians of their own; says so where nothing couples any."""
    if any(note_of(unit.notes, LocalHessian) is not None for unit in units):
        _refuse_own_hessians()
    if not any(UnitArrays(unit.name, context.arrays).has(0, "coupling") for unit in units):
        context.progress.say("nothing is known between rows: each is rounded by itself")


def _gatherer(model: ir.Model, context: PassContext) -> LocalHessians | WeightedHessians:
    """Returns what gathers the kind of Hessians that the graph was annotated with."""
    notes = (note_of(unit.notes, LocalHessian) for unit in quantizable(model))
    local = next((note for note in notes if note is not None), None)
    if local is None:
        return WeightedHessians(context.arrays)
    bound = find_attention(model).bound
    return LocalHessians(bound, context.runner, local.probes, context.seed)


def _is_half(unit: Unit) -> bool:
    """Tells whether all rows were given float16; no unit has some that were."""
    return need_note(unit.notes, BitAllocation).options == (HALF,)


def _refuse_unfolded() -> None:
    raise UsageError(
        "allocate-bits{fold=true} counts no bytes for what fold-permutations takes away",
        hint="add fold-permutations before quantize-weights, or leave out fold=true",
    )


def _kernel_loss(
    unit: Unit,
    classes: Sequence[RowClass],
    quadratic: Quadratic,
    weight: torch.Tensor,
    context: PassContext,
) -> float:
    """Returns the cost of the kernels' own rounding of activations, if they round."""
    widths = [one.option.kernel_bits for one in classes]
    rounds = any(context.capabilities.rounds_activations(bits) for bits in widths)
    loss = quadratic.kernel_loss(weight) if rounds else 0.0
    for one in classes:
        if one.option.integer:
            found = integer_losses(
                unit, weight, one.option, quadratic, context.arrays, context.capabilities
            )
            loss += float(found[_places(one, found)].sum())
    return loss


def _places(one: RowClass, tensor: torch.Tensor) -> torch.Tensor:
    """Returns the indices of a class's rows, where a tensor of the unit is."""
    return torch.from_numpy(one.rows).to(tensor.device)
