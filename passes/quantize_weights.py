"""The pass ``quantize-weights``: rounds every unit to the options that it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from ..ir import (
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
from ..ir.text_form import did_you_mean
from .allocate_bits import AllocateBits
from .attention import find_attention
from .fold_permutations import FoldPermutations
from .lowering.emitter import Names
from .machinery.base import Pass, PassContext
from .machinery.parallel import for_each
from .numerics.rounding import Factor, Rounded, as_half, nearest, round_rows
from .numerics.row_hessians import round_parts
from .rewriting.halved import store_as_half
from .sensitivity.predicted import settle
from .sensitivity.quadratic import Quadratic, kept_columns
from .sweeps.local import LocalHessians
from .sweeps.reweighted import WeightedHessians
from .sweeps.sequence import Hessians, check_can_run, in_sequence

ROUNDINGS = ("gptq", "nearest")
SEQUENCES = ("no", "block", "layer")
_HALF = "allocate-bits chose to store it as float16"


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Round weights to codes and scales; the graph gets the values that the codes stand for.

    The graph stays an ordinary float graph that simulates the result, until a lowering pass
    replaces the weights by their codes. Units that were given float16 are stored so at once,
    behind a Cast that the runtime folds when it loads the model.

    Attributes:
        rounding: ``gptq`` compensates errors against the Hessian; ``nearest`` does not.
        refinements: After GPTQ, rounds of least-squares scales and coordinate descent.
        sequential: ``block`` gathers the Hessians anew, block by block, on what the blocks
            that are rounded already give; ``layer`` lets the units of a block wait for those
            that they depend on, too; ``no`` takes the Hessians as they are. Tokens keep the
            weights of ``calibrate``; after ``attention-hessians`` what stands behind the
            attention is looked at anew.
        samples: Gather them on this many samples only, the first ones; 0 takes all
            (``sequential=block``, ``layer``).
    """

    name: ClassVar[str] = "quantize-weights"
    reads: ClassVar[tuple[type[Annotation], ...]] = (BitAllocation, TensorStats)
    writes: ClassVar[tuple[type[Annotation], ...]] = (QuantSpec,)
    rounding: str = "gptq"
    refinements: int = 3
    sequential: str = "no"
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
                "rounding=nearest looks at no other unit", hint="leave out sequential"
            )
        if self.samples < 0:
            raise UsageError(f"quantize-weights cannot look at {self.samples} samples")
        if self.samples and self.sequential == "no":
            raise UsageError(
                "quantize-weights{samples} is for Hessians that are gathered anew",
                hint="add sequential=block, or leave out samples",
            )

    def foresee(self, model: ir.Model, context: PassContext, before: Sequence[Pass]) -> None:
        """Refuses an allocation that counts on a fold that does not come."""
        if self.sequential != "no":
            check_can_run(model, context, str(self))
        folds = False
        for one in before:
            folds = one.fold if isinstance(one, AllocateBits) else folds
            folds = folds and not isinstance(one, FoldPermutations)
        if folds:
            _refuse_unfolded()

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Rounds every unit that has an allocation and sums up what that will cost."""
        units = [u for u in quantizable(model) if note_of(u.anchor, BitAllocation) is not None]
        if any(note_of(unit.anchor, SharedRows) is not None for unit in units):
            _refuse_unfolded()

        def work(unit: Unit, found: Hessians) -> tuple[float, float]:
            return self._quantize(unit, found, context)

        if self.sequential == "no":
            losses = for_each(lambda one: work(one, {}), units, context.progress, "rounding")
        else:
            check_can_run(model, context, str(self))
            gather, by_layer = _gatherer(model, context), self.sequential == "layer"
            losses = in_sequence(
                model, units, gather, work, context, by_layer=by_layer, samples=self.samples
            )
        names = Names(model)
        for unit in filter(_is_half, units):
            store_as_half(unit, names.free(f"{unit.name}/wide"))
            annotate(unit.anchor, LeftInFloat(unit.name, _HALF))
        settle(model, self.name, losses, context)
        return bool(units)

    def _quantize(
        self, unit: Unit, found: Hessians, context: PassContext
    ) -> tuple[float, float]:
        """Rounds one unit; returns the predicted loss of its weights and of its kernels.

        Args:
            unit: The unit.
            found: Hessians to round against instead of those of calibration.
            context: Supplies the others, and takes codes and scales.
        """
        note = need_note(unit.anchor, BitAllocation)
        columns = kept_columns(unit, context.arrays)
        quadratic = Quadratic.of(unit, context.arrays).against(found, unit).keeping(columns)
        weight, parts = torch.from_numpy(unit.matrix()), quadratic.parts()
        left = quadratic.hidden(weight)
        order = _order(unit, context)
        stored = torch.empty_like(weight)
        start = 0
        for at, (text, count) in enumerate(zip(note.options, note.counts, strict=True)):
            option, rows = Option.parse(text), order[start : start + count]
            start += count
            if option.is_half:
                stored[rows] = as_half(weight[rows])
                continue
            rounded = round_parts(left, rows, parts, partial(self._round, option))
            stored[rows] = rounded.dequantize(option.group)
            context.arrays.put(f"{unit.name}/codes/{at}", rounded.codes.numpy())
            context.arrays.put(f"{unit.name}/scales/{at}", rounded.scales.numpy())
        if len(columns):
            stored = quadratic.completed(weight, stored)
            kept = stored[:, columns].half()
            context.arrays.put(f"{unit.name}/outliers/kept", kept.T.contiguous().numpy())
        unit.replace(stored.numpy())
        loss = float(quadratic.loss(weight, stored).sum(dtype=torch.float64))
        annotate(unit.anchor, replace(note, loss=loss))
        if not _is_half(unit):
            spec = QuantSpec(unit.name, note.options, note.counts, self.rounding)
            annotate(unit.anchor, spec)
        return loss, _kernel_loss(note, quadratic, weight, context)

    def _round(self, option: Option, weight: torch.Tensor, factor: Factor) -> Rounded:
        bits, group = option.bits, option.group
        if self.rounding == "nearest":
            return nearest(weight, bits, group, factor.price)
        return round_rows(weight, bits, group, factor, refinements=self.refinements)


def _gatherer(model: ir.Model, context: PassContext) -> LocalHessians | WeightedHessians:
    """Returns what gathers the kind of Hessians that the graph was annotated with."""
    notes = (note_of(unit.anchor, LocalHessian) for unit in quantizable(model))
    local = next((note for note in notes if note is not None), None)
    if local is None:
        return WeightedHessians(context.arrays)
    bound = find_attention(model).bound
    return LocalHessians(bound, context.runner, local.probes, context.seed)


def _is_half(unit: Unit) -> bool:
    """Tells whether all rows were given float16; no unit has some that were."""
    return need_note(unit.anchor, BitAllocation).options == (HALF,)


def _refuse_unfolded() -> None:
    raise UsageError(
        "allocate-bits{fold=true} counts no bytes for what fold-permutations takes away",
        hint="add fold-permutations before quantize-weights, or leave out fold=true",
    )


def _order(unit: Unit, context: PassContext) -> torch.Tensor:
    """Returns the rows in stored order."""
    name = f"{unit.name}/order"
    if name in context.arrays:
        return torch.from_numpy(np.array(context.arrays.get(name), dtype=np.int64))
    return torch.arange(unit.shape[0])


def _kernel_loss(
    note: BitAllocation, quadratic: Quadratic, weight: torch.Tensor, context: PassContext
) -> float:
    """Returns what the kernels' own rounding of activations costs, where they round."""
    widths = [Option.parse(text).kernel_bits for text in note.options]
    rounds = any(context.capabilities.rounds_activations(bits) for bits in widths)
    return quadratic.kernel_loss(weight) if rounds else 0.0
