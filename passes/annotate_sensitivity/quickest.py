"""Which of the kernels for one width take the least time where a product runs."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir import Option, TensorStats, Unit, need_note
from ...ir.workloads import workloads
from ..engine.pipeline.base import PassContext


def quickest(unit: Unit, options: Sequence[Option], context: PassContext) -> list[Option]:
    """Returns the options without kernels of integers that gain nothing, or without others.

    Args:
        unit: The unit, with its statistics.
        options: What it is offered.
        context: Knows what operations take, and how often the unit runs.
    """
    integers = [one for one in options if one.integer]
    others = [one for one in options if not one.integer and one.bits in _widths(integers)]
    costs, samples = context.costs, context.calibration
    if not integers or not others or costs is None or samples is None:
        return list(options)
    seen = need_note(unit.notes, TensorStats).tokens / len(samples.training)
    tokens = max(seen if run.tokens is None else run.tokens for run in workloads(samples))
    rows, columns = unit.shape
    times = {one: costs.time(costs.kernel(one), tokens, rows, columns) for one in options}
    quick = min(times[one] for one in integers) < min(times[one] for one in others)
    slower = others if quick else integers
    return [one for one in options if one not in slower]


def _widths(options: Sequence[Option]) -> set[int]:
    return {one.bits for one in options}
