"""What rounding is predicted to cost, once it has been done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from ....ir import Budgeted, annotate, note_of
from ..pipeline.base import PassContext


def report_rounding_loss(
    model: ir.Model, name: str, losses: Sequence[tuple[float, float]], context: PassContext
) -> None:
    """Sums up the predicted divergence of all units, for the report and the budget's note.

    Args:
        model: The graph.
        name: The pass that rounded.
        losses: By unit, in nats: what its weights lose, and what its kernels add.
        context: Where the report is.
    """
    weights = float(sum(one for one, _ in losses))
    kernels = float(sum(one for _, one in losses))
    context.report[name] = {"loss": weights, "activation_loss": kernels}
    budget = note_of(model, Budgeted)
    if budget is not None:
        annotate(model, replace(budget, loss=weights + kernels))
