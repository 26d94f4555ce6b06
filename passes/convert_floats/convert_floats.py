"""The pass ``convert-floats``: float16 instead of float32, where that keeps the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...ir import Feeds, UsageError, quantizable
from ..engine.execution.extent import FLOAT_BYTES, Extent
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.forecast import Forecast
from ..engine.pipeline.work import Kind, Work
from .interpreter import Interpreter
from .keeping import Keeping
from .measured import Seen, without_numbers
from .rewriting import Conversion
from .typing_rules import is_float32
from .value_types import fill_in_types

_NAMED = 100  # nodes in the report
_TOGETHER = 2  # runs of all nodes together
_CONVERSIONS = 6  # walks over the weights in a run, to float16 and back


@dataclass(frozen=True)
class ConvertFloats(Pass):
    """Let everything that is not quantized compute in float16, as GPUs are quick at.

        %y = MatMul(%x, %w)                     %x' = Cast<float16>(%x)
                                          =>    %y' = MatMul(%x', %w')
                                                %y  = Cast<float32>(%y')

    Inputs and outputs of the model keep their types, except for caches, which come out of one
    call and go into the next. A node goes on computing in float32 if

    - the standard has no form of it in float16, or it holds a graph (If, Loop, Scan);
    - a number that it reads or makes would leave the range of float16, were it ``margin``
      times as large as on samples;
    - rounding what it reads and makes would change its result by more than ``error``, as it
      does with the cosine of a large angle, and then so do the nodes that make what it reads;
    - run with all others, it would make infinities of numbers that only rule something out;
    - it makes squares for a norm, or follows them up to the division;
    - a constant would become zero that keeps a denominator from being zero;
    - it belongs to layers with a bias that compute in integers (``integer_regions.py``).

    Numbers that only rule something out, such as the -1e9 of a mask, end at half of float16's
    range.

    Attributes:
        samples: Calibration samples to look at.
        margin: Factor by which numbers may be larger than on these samples.
        error: Relative error of its results beyond which a node computes in float32.
    """

    name: ClassVar[str] = "convert-floats"
    promise: ClassVar[Promise] = Promise.NARROWED

    samples: int = 2
    margin: float = 4.0
    error: float = 0.01

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.margin >= 1 or not self.error > 0:
            raise UsageError(
                f"{self.name} cannot take samples={self.samples}, margin={self.margin},"
                f" error={self.error}",
                hint="samples and margin of 1 or more, and an error above 0",
            )

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Work:
        """Every node twice for a sample, in both types; then all of them together."""
        extent, units = Extent.of(model, context.calibration), quantizable(model)
        runs = 2 * self.samples + _TOGETHER
        weights = float(sum(unit.size for unit in units))
        amounts = {
            Kind.SWEEP: runs * extent.multiply_adds(units),
            Kind.WALK: runs * _CONVERSIONS * weights,
        }
        return Work(amounts, held=2 * FLOAT_BYTES * weights)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        if context.calibration is None:
            raise UsageError(
                f"{self.name} needs samples to know how large numbers become",
                hint="give calibration data",
            )
        fill_in_types(model)
        nodes = [node for node in model.graph if _has_floats(node)]
        keeping = Keeping(model.opset_imports.get("", 1))
        keeping.by_rule(nodes)
        feeds = context.calibration.first(self.samples)
        interpreter, seen = Interpreter(model, context), Seen()
        for one in context.progress.track(feeds, len(feeds), "ranges of floats"):
            interpreter.run(one, seen.look)
        keeping.by_measure(nodes, seen, self.margin, self.error)
        low = self._finite(interpreter, nodes, keeping, feeds[0])
        conversion = Conversion(model, low)
        conversion.run()
        if keeping.reasons:
            node, why = next(iter(keeping.reasons.items()))
            context.progress.say(
                f"{len(keeping.reasons)} of {len(nodes)} nodes compute in float32 as before;"
                f" {node.name!r}: {why}"
            )
        context.report[self.name] = {
            "converted": len(low),
            "casts": conversion.casts,
            "kept": len(keeping.reasons),
            "kept_by_operator": dict(Counter(node.op_type for node in keeping.reasons)),
            "reasons": _named(keeping.reasons),
        }
        return bool(low)

    def _finite(
        self,
        interpreter: Interpreter,
        nodes: Sequence[ir.Node],
        keeping: Keeping,
        feeds: Feeds,
    ) -> set[ir.Node]:
        """Returns the nodes to convert, once all of them together make nothing infinite."""
        while True:
            low = {node for node in nodes if node not in keeping.reasons}
            broken = without_numbers(interpreter, low, feeds)
            if not broken:
                return low
            for node in broken:
                keeping.reasons[node] = "numbers that rule something out would become infinite"


def _has_floats(node: ir.Node) -> bool:
    """Tells whether a node reads or makes float32, as far as the graph tells."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return any(value.dtype is None or is_float32(value) for value in values)


def _named(reasons: Mapping[ir.Node, str]) -> dict[str, str]:
    """Returns the first reasons by name."""
    pairs = list(reasons.items())[:_NAMED]
    return {str(node.name): why for node, why in pairs}
