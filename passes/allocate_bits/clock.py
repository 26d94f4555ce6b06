"""The time that an allocation is predicted to take, beside that of the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir import TensorStats, Unit, need_note
from ...ir.analysis.offered import expands_to_floats
from ...ir.costs import CostTable
from ...ir.workloads import Workload, workloads
from ..engine.emission.times import (
    Residence,
    UnitTimes,
    is_timed_convolution,
    unit_times,
)
from ..engine.execution.multiplications import multiplications
from ..engine.numerics.knapsack import Toll
from ..engine.pipeline.base import PassContext
from .decision import Candidate, Decision, Keeping

_FLOAT_BYTES = 4
_BYTE = 8


@dataclass(frozen=True)
class Clock:
    """What every unit takes in every workload.

    Attributes:
        costs: The table.
        workloads: The kinds of runs.
        times: By unit: one for each workload.
    """

    costs: CostTable
    workloads: tuple[Workload, ...]
    times: Mapping[str, tuple[UnitTimes, ...]]

    @classmethod
    def of(
        cls,
        model: ir.Model,
        candidates: Sequence[Candidate],
        bits: float | None,
        context: PassContext,
    ) -> Clock | None:
        """Returns the clock of a model.

        Args:
            model: The graph.
            candidates: The units to decide.
            bits: Bits per weight that are asked for.
            context: Supplies the table and the samples.

        Returns:
            None where nothing is known of times, or where no choice changes any.
        """
        costs, table = context.costs, context.capabilities
        convolved = [
            one.unit for one in candidates if is_timed_convolution(one.unit, one.options)
        ]
        products = [one for one in candidates if not expands_to_floats(one.unit, table)]
        if costs is None or context.calibration is None or not (products or convolved):
            return None
        runs = workloads(context.calibration)
        samples = len(context.calibration.training)
        seen = {one.unit.name: _seen(one.unit) / samples for one in candidates}
        longest = max(seen.values())
        made = multiplications(model, convolved, context) if convolved else {}
        seen |= {unit.name: count / unit.size / len(unit.uses) for unit, count in made.items()}
        weights = sum(one.unit.size for one in candidates)
        stored = weights * (bits or _BYTE * _FLOAT_BYTES) / _BYTE
        cold = Residence(
            weights * _FLOAT_BYTES > costs.machine.cache, stored > costs.machine.cache
        )
        return cls(
            costs,
            runs,
            {
                one.unit.name: tuple(
                    unit_times(
                        one.unit,
                        one.options,
                        table,
                        costs,
                        run.positions(seen[one.unit.name], longest),
                        cold,
                    )
                    for run in runs
                )
                for one in candidates
            },
        )

    @property
    def original(self) -> np.ndarray:
        """Microseconds of all units as they were, by workload."""
        return np.array(
            [
                sum(times[at].original for times in self.times.values())
                for at in range(len(self.workloads))
            ]
        )

    def priced(self, candidate: Candidate, prices: np.ndarray) -> Candidate:
        """Returns a candidate that pays for its time.

        Args:
            candidate: The unit.
            prices: Loss that a microsecond is worth, by workload.
        """
        if not prices.any():
            return candidate
        times = self.times[candidate.unit.name]
        pairs = list(zip(prices, times, strict=True))
        toll = Toll(
            row=np.sum([price * one.rows for price, one in pairs], axis=0),
            classes=np.sum([price * one.classes for price, one in pairs], axis=0),
            mixing=float(sum(price * one.mixing for price, one in pairs)),
            ordering=float(sum(price * one.ordering for price, one in pairs)),
        )
        keeping = Keeping(
            float(sum(price * one.kept for price, one in pairs)),
            float(sum(price * one.kept_column for price, one in pairs)),
        )
        return candidate.paying(toll, keeping)

    def taken(
        self, decisions: Sequence[Decision], candidates: Sequence[Candidate]
    ) -> np.ndarray:
        """Returns the microseconds of an allocation, by workload."""
        kept = {one.unit.name: one.kept for one in candidates}
        total = np.zeros(len(self.workloads))
        for decision in decisions:
            for unit, choice in zip(decision.units, decision.choices, strict=True):
                counts = np.bincount(choice.option)
                rows = [(int(at), int(counts[at])) for at in np.flatnonzero(counts)]
                reordered = decision.group is None and len(rows) > 1
                total += [
                    one.of(rows, reordered=reordered, kept=kept[unit.name])
                    for one in self.times[unit.name]
                ]
        return total


def _seen(unit: Unit) -> int:
    return need_note(unit.notes, TensorStats).tokens
