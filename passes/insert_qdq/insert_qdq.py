"""The pass ``insert-qdq``: rounded units in standard QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ...ir import (
    FloatActivations,
    LeftInFloat,
    OutlierColumns,
    QuantSpec,
    StoredPart,
    Unit,
    UsageError,
    annotate,
    drop_note,
    need_note,
    note_of,
    quantizable,
)
from ...ir.analysis.offered import expands_to_floats, obstacle, result_type
from ...ir.text_form import did_you_mean
from ...ir.unit_arrays import UnitArrays
from ..engine.emission.array import expandable
from ..engine.emission.dequantized import (
    WIDTHS,
    DequantizedUnit,
    emit_dequantized_product,
    storable,
)
from ..engine.emission.emitter import Emitter, Names
from ..engine.emission.lookup import emit_lookup
from ..engine.emission.replacing import forget_weight, replace_node
from ..engine.numerics.activation_grid import RANGES, TYPES
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.forecast import Forecast, Headroom, RaisedOpset
from ..engine.pipeline.work import Work as Amounts
from .measured import measuring
from .rounding import quantize_activations
from .work import Work, no_headroom

ACTIVATIONS = ("none", *TYPES)
_OPSET = 21


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Replace rounded weights by codes and a DequantizeLinear, in standard ONNX only.

    - A MatMul or Gemm becomes one MatMul for each option of the unit's rows: INT4 in blocks
      along the input channels, or INT8 with one scale per output channel. A Concat joins them,
      followed by a Gather if the stored order is not the order of the rows.
    - A Gather looks up int8 codes, and only those are multiplied by their scales. Codes of 4
      bits become int8 when the runtime loads the model, because OpenVINO's BitShift is wrong.
      A table that also serves a product is stored once.
    - A Conv takes its weight as floats, which the runtime makes of int8 codes with one scale
      per output channel when it loads the model.

    With ``activations=int8`` or ``uint8``, products of INT8 rows read their activations
    through a QuantizeLinear and a DequantizeLinear with one static scale from calibration
    samples, so that runtimes can multiply integers. The results of convolutions are rounded
    too, with additions and pools between them, so that one integer kernel follows the other
    (see ``regions.py``), and a Conv reads a DequantizeLinear of its codes. Where its result is
    an output of the model it computes in float. No runtime has integer kernels for INT4 rows,
    so their activations stay as they are.

    With ``fp8`` so do products of rows whose codes are floats of 8 bits, and nothing else.

    ``int8`` is symmetric, as TensorRT requires; ONNX Runtime is fast with ``uint8`` only. One
    static scale can ruin an activation with rare large values: the most expensive of products
    stay in float too, see ``tolerance``. What the activations of convolutions lose is
    measured, one at a time.

    Processors without VNNI clip sums of two products in these kernels, so ``leave-headroom``
    has to come first.

    The only zero points are those of ``uint8`` activations. Apart from rounded activations,
    the graph computes exactly the same as the simulated one.

    Attributes:
        activations: ``none``, ``int8``, ``uint8`` or ``fp8``.
        ranges: Range of an activation's scale: ``mse`` clips the farthest values if that
            lowers the mean squared error, ``minmax`` covers everything that calibration saw.
        tolerance: Activations stay in float, the most expensive first, until the predicted
            cost of the others is at most this many times that of rounding the weights.
    """

    name: ClassVar[str] = "insert-qdq"
    opset: ClassVar[int] = _OPSET
    reads = (QuantSpec,)
    writes = (StoredPart,)
    drops = (QuantSpec, FloatActivations)
    promise: ClassVar[Promise] = Promise.SAME_SIMULATION

    activations: str = "none"
    ranges: str = "mse"
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        for value, known in ((self.activations, ACTIVATIONS), (self.ranges, RANGES)):
            if value not in known:
                hint = did_you_mean(value, known)
                raise UsageError(f"insert-qdq knows no {value!r}", hint=hint)
        if not self.tolerance >= 0:
            raise UsageError(f"insert-qdq cannot tolerate {self.tolerance}", hint="0 or more")
        for name in ("ranges", "tolerance"):
            given = getattr(self, name)
            if self.activations == "none" and given != getattr(type(self), name):
                raise UsageError(
                    f"{name}={given} means nothing without quantized activations",
                    hint="add activations=int8 or activations=uint8",
                )

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses targets with other widths, and graphs that will be too old."""
        table, rounds = context.capabilities, self.activations != "none"
        if rounds and table.needs_headroom and forecast.get(Headroom) is None:
            raise no_headroom("")
        known = table.activation_types
        if rounds and self.activations not in known:
            raise UsageError(
                f"{table.target} rounds no activations to {self.activations}",
                hint=f"it knows {', '.join(known)}" if known else "say activations=none",
            )
        if self.activations == "fp8" and not table.float8:
            raise UsageError(
                "activations in fp8 need weights in fp8, which the pass cannot make",
                hint="compile with --activations fp8 and a preset",
            )
        raised = forecast.get(RaisedOpset) or RaisedOpset(0)
        _check_opset(max(model.opset_imports.get("", 1), raised.version))
        odd = [kernel.bits for kernel in table.kernels if kernel.bits not in WIDTHS]
        if odd:
            raise UsageError(
                f"{table.target} offers weights of {odd[0]} bits, for which opset {_OPSET} has"
                " no type",
                hint="compile with --target qdq",
            )

    def work(self, model: ir.Model, context: PassContext, forecast: Forecast) -> Amounts:
        """The usual walk; with rounded activations, runs in which each is rounded alone."""
        usual = super().work(model, context, forecast)
        return usual if self.activations == "none" else usual + measuring(model, context)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        _check_opset(model.opset_imports.get("", 1))
        work = Work(model, context, Names(model))
        units = [u for u in quantizable(model) if note_of(u.notes, QuantSpec) is not None]
        if any(note_of(unit.notes, OutlierColumns) is not None for unit in units):
            raise UsageError(
                f"{self.name} keeps no input channels in 16 bits",
                hint="leave keep out of annotate-sensitivity",
            )
        for unit in units:
            spec = need_note(unit.notes, QuantSpec)
            drop_note(unit.notes, QuantSpec)
            table = context.capabilities
            why = obstacle(unit) or storable(unit, spec)
            expands = bool(why) or expands_to_floats(unit, table)
            if expands and unit.uses[0].kind != "conv" and expandable(unit, spec, table):
                work.expanded[unit.name] = (unit, spec)
            elif why:
                work.skipped[unit.name] = why
                annotate(unit.notes, LeftInFloat(unit.name, why))
            else:
                work.specs[unit.name] = (unit, spec)
        facts = {}
        if self.activations != "none":
            facts = quantize_activations(work, self.activations, self.ranges, self.tolerance)
        work.expand_the_rest()
        for unit in units:
            drop_note(unit.notes, FloatActivations)
        work.check_headroom()
        for unit, spec in work.specs.values():
            _lower(unit, spec, work)
        for unit, spec in work.expanded.values():
            work.expand(unit, spec)
        _keep_products_of_codes(model.graph)
        count = len(work.specs) + len(work.expanded)
        lowered: dict[str, Any] = {"lowered": count, "skipped": work.skipped}
        if work.quantized:
            lowered["untimed"] = True  # these integers were not chosen by time
        context.report[self.name] = {**lowered, **facts}
        return bool(units)


def _keep_products_of_codes(graph: ir.Graph) -> None:
    """Adds biases to products of codes by Sum instead of Add.

    ONNX Runtime makes a Gemm of the product of a matrix and an Add, and then expands the codes
    in every run instead of taking them for a product of codes.
    """
    for node in graph:
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        biases = sum(value is not None and value.is_initializer() for value in node.inputs)
        makers = [value.producer() for value in node.inputs if value is not None]
        if biases == 1 and any(map(_is_product_of_codes, makers)):
            node.op_type = "Sum"


def _is_product_of_codes(node: ir.Node | None) -> bool:
    weight = node.inputs[1] if node is not None and node.op_type == "MatMul" else None
    maker = weight.producer() if weight is not None else None
    return maker is not None and maker.op_type == "DequantizeLinear"


def _lower(unit: Unit, spec: QuantSpec, work: Work) -> None:
    """Replaces all uses of ``unit`` and removes its float weight."""
    if unit.uses[0].kind == "conv":
        work.lower_convolution(unit)
        return
    graph, arrays = work.model.graph, work.context.arrays
    shared = Emitter(graph, work.names, unit.name, unit.anchor)
    stored = DequantizedUnit(unit, spec, arrays, shared)
    results = []
    for use in unit.uses:
        emit = Emitter(graph, work.names, unit.name, use.node)
        dtype = result_type(unit, use)
        if use.kind == "lookup":
            expands = work.context.capabilities.lookup == "expand"
            form = "expand" if expands else "dequantize"
            result = emit_lookup(stored, use, dtype, form, emit)
        else:
            quantized = work.quantized.get(use.node)
            result = emit_dequantized_product(stored, use, dtype, quantized, emit)
        results.append((use.node, emit, result))
    graph.insert_before(unit.anchor, shared.nodes)
    for node, emit, result in results:
        replace_node(graph, node, emit.nodes, result)
    forget_weight(graph, unit)
    UnitArrays(unit.name, arrays).discard("codes", "")  # the graph holds them now


def _check_opset(opset: int) -> None:
    if opset < _OPSET:
        raise UsageError(
            f"insert-qdq needs opset {_OPSET}, and the graph has {opset}",
            hint="add raise-opset after normalize",
        )
