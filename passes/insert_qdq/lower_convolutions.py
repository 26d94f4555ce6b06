"""The pass ``lower-convolutions``: convolutions that multiply integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...ir import (
    FloatActivations,
    Option,
    QuantSpec,
    StoredPart,
    Unit,
    UsageError,
    drop_note,
    note_of,
    quantizable,
)
from ..engine.emission.emitter import Names
from ..engine.numerics.activation_grid import RANGES
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.chosen_options import one_of
from ..engine.pipeline.forecast import Forecast, Headroom, RaisedOpset
from .rounding import quantize_activations
from .work import Work, no_headroom

_OPSET = 13  # the first with an axis of QuantizeLinear
_KIND = "uint8"


@dataclass(frozen=True)
class LowerConvolutions(Pass):
    """Let convolutions whose rows have the option ``a8`` multiply integers.

    They read their weights and activations through DequantizeLinear, with one scale for each
    output channel of the weights and one for a whole activation, from calibration samples.
    Results are rounded too, with additions and pools between them, as ``insert-qdq`` does it,
    so that the runtime makes one integer kernel follow the other. A convolution whose result
    is an output of the model computes in float, with weights that expand at load.

    Matrices are left to the lowering that follows. What the rounding of activations loses is
    measured, one at a time, and added to the prediction. ``leave-headroom`` has to come first,
    because processors without VNNI clip sums of two products.

    Attributes:
        ranges: Range of an activation's scale: ``mse`` clips the farthest values if that
            lowers the mean squared error, ``minmax`` covers everything that calibration saw.
    """

    name: ClassVar[str] = "lower-convolutions"
    opset: ClassVar[int] = _OPSET
    reads = (QuantSpec,)
    writes = (StoredPart,)
    promise: ClassVar[Promise] = Promise.SAME_SIMULATION

    ranges: str = "mse"

    def __post_init__(self) -> None:
        one_of(RANGES, ranges=self.ranges)

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses codes without headroom, and graphs that will be too old."""
        if forecast.get(Headroom) is None:
            raise no_headroom("")
        raised = forecast.get(RaisedOpset) or RaisedOpset(0)
        opset = max(model.opset_imports.get("", 1), raised.version)
        if opset < _OPSET:
            raise UsageError(
                f"{self.name} needs opset {_OPSET}, and the graph has {opset}",
                hint=f"add raise-opset{{version={_OPSET}}} after normalize",
            )

    def run(self, model: ir.Model, context: PassContext) -> bool:
        work = Work(model, context, Names(model))
        for unit in quantizable(model):
            spec = note_of(unit.notes, QuantSpec)
            if spec is not None and _is_integer(unit, spec):
                work.specs[unit.name] = (unit, spec)
                drop_note(unit.notes, QuantSpec)
        if not work.specs:
            context.report[self.name] = {"lowered": 0}
            return False
        facts = quantize_activations(work, _KIND, self.ranges, tolerance=1.0)
        work.expand_the_rest()
        work.check_headroom()
        for unit, _ in work.specs.values():
            drop_note(unit.notes, FloatActivations)
            work.lower_convolution(unit)
        for unit, spec in work.expanded.values():
            work.expand(unit, spec)
        context.report[self.name] = {"lowered": len(work.specs), **facts}
        return True


def _is_integer(unit: Unit, spec: QuantSpec) -> bool:
    """Tells whether a unit is convolved, with all rows in codes for an integer kernel."""
    if unit.uses[0].kind != "conv" or len(spec.options) != 1:
        return False
    return Option.parse(spec.options[0]).integer
