"""How often the weights of a unit are multiplied."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ....ir import Unit
from ..pipeline.base import PassContext
from .exposing import observe
from .samples import Samples


def multiplications(
    model: ir.Model, units: Sequence[Unit], context: PassContext
) -> dict[Unit, float]:
    """Returns how many multiplications of each unit there are in a sample.

    Without samples they are taken to be as many as there are weights.
    """
    if context.calibration is None:
        return {unit: float(unit.size) for unit in units}
    made = {
        use.node.outputs[0]: unit
        for unit in units
        for use in unit.uses
        if use.kind in ("product", "conv")
    }
    found = dict.fromkeys(units, 0.0)
    samples = Samples.of(context, context.calibration.first(1))
    for value, tokens in observe(model, list(made), samples, context, "counting"):
        unit = made[value]
        found[unit] += tokens.size / unit.shape[0] * unit.size
    return found
