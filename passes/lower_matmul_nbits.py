"""The pass ``lower-matmul-nbits``: rounded units become packed codes and stock kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir import (
    Capabilities,
    LeftInFloat,
    Option,
    OutlierColumns,
    QuantSpec,
    StoredPart,
    Unit,
    UsageError,
    annotate,
    drop_note,
    note_of,
    quantizable,
)
from ..ir.analysis.offered import (
    INTEGERS,
    expands_to_floats,
    expansion_obstacle,
    obstacle,
    result_type,
)
from ..ir.unit_arrays import UnitArrays
from .engine.emission.array import expand_unit, expandable
from .engine.emission.emitter import CONTRIB, Emitter, Names
from .engine.emission.lookup import emit_lookup
from .engine.emission.product import emit_product
from .engine.emission.replacing import forget_weight, replace_node
from .engine.emission.slim_product import SlimProduct
from .engine.emission.stored import StoredUnit
from .engine.pipeline.base import Pass, PassContext, Promise
from .engine.pipeline.forecast import Forecast, Headroom, Judged
from .engine.statistics.quadratic import outlier_columns

_FLOATS = "no kernel of codes serves it"


@dataclass(frozen=True)
class LowerMatMulNBits(Pass):
    """Replace rounded weights by packed codes, and their consumers by nodes that read them.

    - A MatMul or Gemm becomes one ``com.microsoft.MatMulNBits`` for each option of the unit's
      rows, joined by a Concat and, if the stored order is not the order of the rows, a Gather.
    - Rows with the option ``a8`` multiply integers: a DynamicQuantizeLinear rounds the
      activation, once for all that read it, and MatMulInteger multiplies its codes.
    - Input channels in 16 bits become a slim MatMul whose result is added.
    - A Gather from the table looks up packed rows and expands only those. A table that also
      serves a product is stored once.
    - Codes of a width without a kernel (3, 5, 6, 7 bits) are stored densely, with nodes that
      the runtime computes when it loads the model; the next wider kernel then runs them.
    - Any other reader of a weight (Conv, LSTM, Einsum, Loop, a product in bfloat16) stays and
      takes floats, which the runtime makes of codes when it loads the model.

    The graph computes the same as the simulated one, up to the kernels' own rounding
    (``accuracy_level`` of the capability table). A unit that the target cannot run stays in
    float, with the reason in the report and in a note.
    """

    name: ClassVar[str] = "lower-matmul-nbits"
    reads = (QuantSpec,)
    writes = (StoredPart,)
    drops = (QuantSpec, OutlierColumns)
    promise: ClassVar[Promise] = Promise.SAME_SIMULATION

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses kernels of integers whose codes will leave no headroom."""
        judged = forecast.get(Judged)
        integers = judged is not None and judged.offer.integers != INTEGERS[0]
        if integers and forecast.get(Headroom) is None:
            raise UsageError(
                "processors without VNNI would clip products of INT8 rows with rounded"
                " activations",
                hint=f"add leave-headroom before {self.name}",
            )

    def run(self, model: ir.Model, context: PassContext) -> bool:
        names = Names(model)
        lowered, skipped = [], {}
        for unit in quantizable(model):
            spec = note_of(unit.notes, QuantSpec)
            if spec is None:
                continue
            drop_note(unit.notes, QuantSpec)
            table = context.capabilities
            why = obstacle(unit) or _obstacle(unit, spec, table)
            expands = bool(why) or expands_to_floats(unit, table)
            if expands and expandable(unit, spec, table):
                expand_unit(model.graph, unit, spec, context.arrays, names)
            elif why:
                skipped[unit.name] = why
                annotate(unit.notes, LeftInFloat(unit.name, why))
                continue
            else:
                _lower(model, unit, spec, context, names)
            lowered.append(unit.name)
        context.report[self.name] = {"lowered": len(lowered), "skipped": skipped}
        return bool(lowered or skipped)


def _obstacle(unit: Unit, spec: QuantSpec, table: Capabilities) -> str:
    """Returns why the target cannot run the unit's options; empty when it can."""
    options = [Option.parse(text) for text in spec.options]
    columns = unit.shape[1]
    expands = any(option.expands for option in options)
    if expands and (why := expansion_obstacle(unit, table)):
        return why
    found = {
        "lookup": lambda: _lookup_obstacle(options, table),
        "conv": lambda: _FLOATS,
        "array": lambda: _FLOATS,
        "product": lambda: _product_obstacle(options, spec.counts, columns, table),
    }
    return next((why for use in unit.uses if (why := found[use.kind]())), "")


def _product_obstacle(
    options: list[Option], counts: tuple[int, ...], columns: int, table: Capabilities
) -> str:
    for option, rows in zip(options, counts, strict=True):
        if option in table.integer_options(columns):
            continue
        kernel = table.kernel(option.kernel_bits)
        stores = kernel is not None and table.can_store(option)
        if kernel is None or not stores or option.group not in kernel.groups:
            return f"{table.target} has no fast kernel for {option}"
        if rows % kernel.row_multiple or columns % kernel.column_multiple:
            return (
                f"{table.target} wants {option.bits}-bit weights in multiples of "
                f"{kernel.row_multiple} rows x {kernel.column_multiple} columns, "
                f"these are {rows} x {columns}"
            )
    return ""


def _lookup_obstacle(options: list[Option], table: Capabilities) -> str:
    for option in options:
        if option.kernel_bits not in table.lookup_bits or not table.can_store(option):
            return f"{table.target} cannot look up rows of {option.bits} bits"
    return ""


def _lower(
    model: ir.Model, unit: Unit, spec: QuantSpec, context: PassContext, names: Names
) -> None:
    """Replaces all uses of ``unit`` and removes its float weight."""
    table = context.capabilities
    shared = Emitter(model.graph, names, unit.name, unit.anchor)
    stored = StoredUnit(unit, spec, context.arrays, shared)
    kept = _kept(unit, context, shared)
    results = []
    for use in unit.uses:
        emit = Emitter(model.graph, names, unit.name, use.node)
        dtype = result_type(unit, use)
        result = (
            emit_lookup(stored, use, dtype, table.lookup, emit)
            if use.kind == "lookup"
            else emit_product(stored, kept, use, dtype, table, emit)
        )
        results.append((use.node, emit, result))
    model.graph.insert_before(unit.anchor, shared.nodes)
    for node, emit, result in results:
        replace_node(model.graph, node, emit.nodes, result)
    forget_weight(model.graph, unit)
    for folder in ("codes", "outliers"):
        UnitArrays(unit.name, context.arrays).discard(folder, "")  # the graph holds them now
    model.opset_imports.setdefault(CONTRIB, 1)


def _kept(unit: Unit, context: PassContext, emit: Emitter) -> SlimProduct | None:
    """Stores the input channels that stay in 16 bits, if any do."""
    columns = outlier_columns(unit, context.arrays)
    drop_note(unit.notes, OutlierColumns)
    if not len(columns):
        return None
    kept = UnitArrays(unit.name, context.arrays).get("outliers", "kept")
    return SlimProduct(columns, kept, unit.shape[1], "outliers", emit)
