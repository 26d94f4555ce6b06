"""What holding a pass to its promise takes."""

from __future__ import annotations

import onnx_ir as ir

from ....ir import quantizable
from ..execution.extent import Extent
from ..pipeline.base import PassContext, Promise
from ..pipeline.work import Kind, Work
from .samples import MOST_TOKENS

_WALKS = {Promise.SIMULATION: 8, Promise.SAME_CODES: 8, Promise.SAME_SIMULATION: 24}
_SECONDS = 0.2  # to look at two graphs
_RUN = (Promise.SAME_FUNCTION, Promise.NARROWED, Promise.SAME_SIMULATION)


def validation_work(promise: Promise, model: ir.Model, context: PassContext) -> Work:
    """Returns the work of comparing the graphs before and after a pass.

    Args:
        promise: What the pass promises.
        model: The graph.
        context: Its samples.
    """
    units = quantizable(model)
    weights = float(sum(unit.size for unit in units))
    amounts = {Kind.WALK: weights * _WALKS.get(promise, 0), Kind.SECOND: _SECONDS}
    if promise in _RUN:
        extent = Extent.of(model, context.calibration)
        share = min(1.0, MOST_TOKENS / extent.positions)
        amounts[Kind.SWEEP] = 2 * share * extent.multiply_adds(units)
        amounts[Kind.WALK] += 4 * weights
    return Work(amounts)
