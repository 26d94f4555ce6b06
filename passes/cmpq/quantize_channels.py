"""The pass ``quantize-channels``: rounds every unit to the levels of its input channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from ...ir import (
    Annotation,
    ArrayStore,
    ChannelAllocation,
    ChannelSpec,
    OutlierColumns,
    OutlierEntries,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    need_note,
    note_of,
    quantizable,
)
from ...ir.text_form import did_you_mean
from ..engine.execution.extent import FLOAT_BYTES
from ..engine.execution.parallel import for_each
from ..engine.numerics import channel_rounding as numerics
from ..engine.numerics.channel_rounding import Class, Levels, Outliers, RoundedChannels
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.forecast import Forecast
from ..engine.pipeline.work import Kind, Work
from ..engine.statistics.predicted import report_rounding_loss
from ..engine.statistics.quadratic import Quadratic
from ..engine.statistics.rounding_work import factor_work, loss_work, most_at_once

ROUNDINGS = ("nearest", "gptq")
IMPORTANCE = ("even", "fisher")
_HALF_MOST = 65504.0
_FITTING = 60  # walks over a weight: sorting, dynamic programming and Lloyd's iterations
_COPIES = 12  # of a weight, meanwhile
_GRID_BITS = {"grid4": 4, "grid8": 8}


@dataclass(frozen=True)
class QuantizeChannels(Pass):
    """Fit levels to every input channel and round its weights to them.

    Free levels, and those on a grid, are the weighted k-means of the channel's weights, solved
    by dynamic programming up to 4 bits. Outliers take no part in the fit and keep their values
    as float16. The graph gets the values of the levels and stays an ordinary float graph until
    ``lower-channels`` replaces its weights.

    Sources: CMPQ (arXiv 2410.13056) has ``rounding=nearest, rows=even``. Weighting rows by
    Fisher information follows SqueezeLLM and SKIM, compensation by columns with codebooks
    CLAQ.

    Attributes:
        rounding: ``nearest``, or ``gptq``: later columns absorb the errors of earlier ones.
        rows: Weights of the rows in the fit: ``even``, or ``fisher``, their Fisher
            information.
    """

    name: ClassVar[str] = "quantize-channels"
    reads: ClassVar[tuple[type[Annotation], ...]] = (ChannelAllocation, TensorStats)
    writes: ClassVar[tuple[type[Annotation], ...]] = (ChannelSpec,)
    promise: ClassVar[Promise] = Promise.SIMULATION
    rounding: str = "nearest"
    rows: str = "even"

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            hint = did_you_mean(self.rounding, ROUNDINGS)
            raise UsageError(f"no rounding {self.rounding!r}", hint=hint)
        if self.rows not in IMPORTANCE:
            hint = did_you_mean(self.rows, IMPORTANCE)
            raise UsageError(f"rows cannot count by {self.rows!r}", hint=hint)

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """A factor of every Hessian, and levels for every channel."""
        total = Work()
        for unit in quantizable(model):
            rows, columns = unit.shape
            levels = Work({Kind.WALK: float(_FITTING * rows * columns)})
            total += factor_work(columns) + levels + loss_work(unit.shape)
        units = quantizable(model)
        weights = sum(unit.size for unit in units)
        held = most_at_once(_COPIES * FLOAT_BYTES * unit.size for unit in units)
        return Work(total.amounts, held=held, left=float((FLOAT_BYTES + 1) * weights))

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Rounds every unit that has an allocation and sums up what that will cost."""
        units = [
            unit
            for unit in quantizable(model)
            if note_of(unit.notes, ChannelAllocation) is not None
        ]

        def work(unit: Unit) -> tuple[float, float]:
            return self._quantize(unit, context)

        losses = for_each(work, units, context.progress, "rounding channels")
        report_rounding_loss(model, self.name, losses, context)
        return bool(units)

    def _quantize(self, unit: Unit, context: PassContext) -> tuple[float, float]:
        """Rounds one unit; returns the predicted loss of its weights and of its kernels."""
        note, arrays = need_note(unit.notes, ChannelAllocation), context.arrays
        quadratic = Quadratic.of(unit, arrays)
        weight = torch.from_numpy(unit.matrix())
        classes, outliers = _classes(note, arrays), _outliers(unit, arrays)
        levels = self._levels(note, weight, classes, outliers, quadratic)
        compensates = self.rounding == "gptq" and quadratic.mixed().ndim == 2
        factor = quadratic.factor() if compensates else None
        rounded = numerics.round_channels(weight, classes, levels, outliers, factor)
        stored = _keep(unit.name, note, rounded, levels, outliers, arrays)
        unit.replace(stored.numpy())
        loss = float(quadratic.loss(weight, stored).sum(dtype=torch.float64))
        annotate(unit.notes, ChannelSpec(unit.name, self.rounding, loss))
        return loss, _kernel_loss(note, quadratic, weight, context)

    def _levels(
        self,
        note: ChannelAllocation,
        weight: torch.Tensor,
        classes: list[Class],
        outliers: Outliers,
        quadratic: Quadratic,
    ) -> Levels:
        rows = torch.ones(len(weight))
        if self.rows == "fisher":
            rows = quadratic.row_importance()
        columns = quadratic.factor().price if note.levels != "free" else torch.empty(0)
        if note.levels == "free":
            return numerics.free(weight, classes, outliers, rows)
        if note.levels == "even":
            return numerics.even(weight, classes, outliers, columns, note.group)
        grid_bits = _GRID_BITS[note.levels]
        return numerics.on_grid(
            weight, classes, outliers, rows, columns, grid_bits, note.group
        )


def _classes(note: ChannelAllocation, arrays: ArrayStore) -> list[Class]:
    order = torch.from_numpy(arrays.get(f"{note.unit}/channels").astype(np.int64))
    parts = torch.split(order, list(note.counts))
    return [Class(bits, part) for bits, part in zip(note.bits, parts, strict=True)]


def _outliers(unit: Unit, arrays: ArrayStore) -> Outliers:
    def read(what: str, shape: tuple[int, ...], present: bool) -> torch.Tensor:
        if not present:
            return torch.zeros(shape, dtype=torch.long)
        found = arrays.get(f"{unit.name}/outliers/{what}")
        return torch.from_numpy(found.astype(np.int64))

    return Outliers(
        read("columns", (0,), note_of(unit.notes, OutlierColumns) is not None),
        read("entries", (0, 2), note_of(unit.notes, OutlierEntries) is not None),
    )


def _keep(
    name: str,
    note: ChannelAllocation,
    rounded: RoundedChannels,
    levels: Levels,
    outliers: Outliers,
    arrays: ArrayStore,
) -> torch.Tensor:
    """Puts codes and levels into the array store; returns the weight that they stand for."""
    for at, indices in enumerate(rounded.indices):
        arrays.put(f"{name}/indices/{at}", indices.numpy())
        if note.levels != "even":
            dtype = np.float16 if note.levels == "free" else np.int8
            arrays.put(f"{name}/levels/{at}", levels.by_class[at].numpy().astype(dtype))
    if note.levels != "free":
        arrays.put(f"{name}/scales", levels.scales.numpy().astype(np.float16))
    stored = rounded.values.clone()
    if len(outliers.columns):
        kept = _half(rounded.wanted[:, outliers.columns])
        stored[:, outliers.columns] = kept
        arrays.put(f"{name}/outliers/kept", kept.T.numpy().astype(np.float16))
    if len(outliers.entries):
        row, column = outliers.entries.T
        base = torch.zeros(()) if note.levels == "free" else stored[row, column]
        values = _half(rounded.wanted[row, column] - base)
        stored[row, column] = base + values
        arrays.put(f"{name}/outliers/values", values.numpy().astype(np.float16))
    return stored


def _half(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(-_HALF_MOST, _HALF_MOST).half().float()


def _kernel_loss(
    note: ChannelAllocation, quadratic: Quadratic, weight: torch.Tensor, context: PassContext
) -> float:
    """Returns the cost of the kernels' own rounding of activations, if they round."""
    if note.levels == "free":
        return 0.0
    widths = note.bits if note.levels == "even" else (_GRID_BITS[note.levels],)
    rounds = any(context.capabilities.rounds_activations(bits) for bits in widths)
    return quadratic.kernel_loss(weight) if rounds else 0.0
