"""The pass ``split-outliers``: a few weights stay in 16 bits so that the others need fewer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from ...ir import (
    Annotation,
    ChannelAllocation,
    OutlierColumns,
    OutlierEntries,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    drop_note,
    note_of,
    quantizable,
)
from ...ir.text_form import did_you_mean
from ..engine.execution.parallel import for_each
from ..engine.numerics.codebooks import free_levels
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.forecast import Forecast, OutlierShares
from ..engine.statistics.quadratic import Quadratic

WAYS = ("activation", "quantization")


@dataclass(frozen=True)
class SplitOutliers(Pass):
    """Choose the part of a product's weight that stays in 16 bits.

        y = x W      =>      y = x W_rest + x[:, columns] W[columns, :]

    ``by=activation`` chooses whole input channels, those with the largest activation norms
    ``E[c_t x_j^2]``; lowering turns them into a slim product. ``by=quantization`` chooses
    single weights, those that a trial rounding to codebooks of ``bits`` bits per channel
    changes most (the largest ``|w - w^|``, without the entries of an earlier split); each is
    stored with its row and column. The pass can run once for each kind. It only chooses:
    ``allocate-channels`` counts the bytes and ``quantize-channels`` keeps the values.

    Source: CMPQ (arXiv 2410.13056), the activation-based and the quantization-based outliers.

    Attributes:
        by: ``activation`` or ``quantization``.
        share: Share of the channels, or of the weights, of each unit; at least one is chosen.
        bits: Width of the trial codebooks of ``by=quantization``.
    """

    name: ClassVar[str] = "split-outliers"
    reads: ClassVar[tuple[type[Annotation], ...]] = (TensorStats,)
    writes: ClassVar[tuple[type[Annotation], ...]] = (OutlierColumns, OutlierEntries)
    drops: ClassVar[tuple[type[Annotation], ...]] = (ChannelAllocation,)
    promise: ClassVar[Promise] = Promise.SAME_GRAPH
    by: str
    share: float
    bits: int = 3

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise UsageError(
                f"split-outliers cannot go by {self.by!r}", hint=did_you_mean(self.by, WAYS)
            )
        if not 0 < self.share <= 0.5:
            raise UsageError(
                f"split-outliers wants a share above 0 and up to 0.5, not {self.share}",
                hint="0.0045 of the channels and 0.0005 of the weights are usual",
            )
        if not 1 <= self.bits <= 8:
            raise UsageError(f"there are no codebooks of {self.bits} bits, only of 1 to 8")
        if self.by == "activation" and self.bits != SplitOutliers.bits:
            raise UsageError("split-outliers{by=activation} rounds nothing: leave out bits")

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Annotates every product that calibration has seen."""
        seen = [u for u in quantizable(model) if note_of(u.notes, TensorStats) is not None]
        units = [unit for unit in seen if is_splittable(unit)]
        for unit in units:
            drop_note(unit.notes, ChannelAllocation)  # its channels are others now
        if not units:
            raise UsageError(
                "split-outliers has nothing to split: no weight serves products alone",
                hint="leave the pass out",
            )
        split = self._columns if self.by == "activation" else self._entries
        counts = for_each(
            lambda unit: split(unit, context), units, context.progress, "outliers"
        )
        skipped = {unit.name: _why_not(unit) for unit in seen if not is_splittable(unit)}
        facts = context.report.setdefault(self.name, {})
        facts[self.by] = {"units": len(units), "kept": sum(counts), "skipped": skipped}
        return True

    def _shares(self, earlier: OutlierShares) -> OutlierShares:
        by_activation = self.by == "activation"
        return replace(earlier, **{"columns" if by_activation else "entries": self.share})

    def forecast(self, before: Forecast) -> Forecast:
        earlier = before.get(OutlierShares) or OutlierShares()
        return super().forecast(before).telling(self._shares(earlier))

    def _columns(self, unit: Unit, context: PassContext) -> int:
        energy = Quadratic.of(unit, context.arrays).energy()
        count, _ = planned(unit, self._shares(OutlierShares()))
        chosen = energy.argsort(descending=True, stable=True)[:count].sort().values
        context.arrays.put(f"{unit.name}/outliers/columns", chosen.numpy().astype(np.int32))
        annotate(unit.notes, OutlierColumns(unit.name, count))
        return count

    def _entries(self, unit: Unit, context: PassContext) -> int:
        weight = torch.from_numpy(unit.matrix())
        _, count = planned(unit, self._shares(OutlierShares()))
        even = torch.ones(len(weight))
        trial = free_levels(weight.T.contiguous(), even, self.bits).decode().T
        error = (trial - weight).abs()
        if note_of(unit.notes, OutlierColumns) is not None:
            columns = context.arrays.get(f"{unit.name}/outliers/columns")
            error[:, torch.from_numpy(columns.astype(np.int64))] = -1
        chosen = error.flatten().argsort(descending=True, stable=True)[:count].sort().values
        places = torch.stack([chosen // weight.shape[1], chosen % weight.shape[1]], dim=1)
        context.arrays.put(f"{unit.name}/outliers/entries", places.numpy().astype(np.int32))
        annotate(unit.notes, OutlierEntries(unit.name, count))
        return count


def is_splittable(unit: Unit) -> bool:
    """Tells whether part of the weight can be multiplied by itself."""
    return not _why_not(unit)


def _why_not(unit: Unit) -> str:
    if any(use.kind != "product" for use in unit.uses):
        return "it is looked up or convolved: outliers need a plain product"
    return "it has a single input channel" if unit.shape[1] < 2 else ""


def planned(unit: Unit, shares: OutlierShares) -> tuple[int, int]:
    """Returns how many columns and entries of ``unit`` will be chosen."""
    if not is_splittable(unit):
        return 0, 0
    rows, columns = unit.shape
    return math.ceil(shares.columns * columns), math.ceil(shares.entries * rows * columns)
