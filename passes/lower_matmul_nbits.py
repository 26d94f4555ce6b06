"""The pass ``lower-matmul-nbits``: rounded units become packed codes and stock kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir import (
    Capabilities,
    LeftInFloat,
    Option,
    QuantSpec,
    StoredPart,
    Unit,
    Use,
    annotate,
    drop_note,
    note_of,
    quantizable,
)
from .base import Pass, PassContext
from .lowering.emitter import CONTRIB, Emitter, Names
from .lowering.lookup import emit_lookup
from .lowering.product import emit_product
from .lowering.stored import StoredUnit
from .numerics.packing import PACKED_BITS

_ACTIVATIONS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_OLDEST_OPSET = 11  # BitShift


@dataclass(frozen=True)
class LowerMatMulNBits(Pass):
    """Replaces rounded weights by packed codes and their consumers by nodes that read them.

    - A MatMul or Gemm becomes one ``com.microsoft.MatMulNBits`` for each option that the
      unit's rows have, joined by a Concat and, where stored order is not the order of the
      rows, a Gather.
    - A Gather from the table looks up packed rows and expands only those. A table that also
      serves a product is stored once.

    The graph computes what the simulated one computed, up to the kernels' own rounding
    (``accuracy_level`` of the capability table). A unit that the target cannot run stays in
    float, with the reason in the report and in a note.
    """

    name: ClassVar[str] = "lower-matmul-nbits"
    reads = (QuantSpec,)
    writes = (StoredPart,)
    drops = (QuantSpec,)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        names = Names(model)
        lowered, skipped = [], {}
        for unit in quantizable(model):
            spec = note_of(unit.anchor, QuantSpec)
            if spec is None:
                continue
            drop_note(unit.anchor, QuantSpec)
            why = _obstacle(model, unit, spec, context.capabilities)
            if why:
                skipped[unit.name] = why
                annotate(unit.anchor, LeftInFloat(unit.name, why))
                continue
            _lower(model, unit, spec, context, names)
            lowered.append(unit.name)
        context.report[self.name] = {"lowered": len(lowered), "skipped": skipped}
        return bool(lowered or skipped)


def _obstacle(model: ir.Model, unit: Unit, spec: QuantSpec, table: Capabilities) -> str:
    """Returns why the target cannot run the unit; empty when it can."""
    options = [Option.parse(text) for text in spec.options]
    for use in unit.uses:
        dtype = _result_type(unit, use)
        if dtype not in _ACTIVATIONS:
            return f"{use.node.op_type} {use.node.name!r} computes in {dtype.name.lower()}"
        why = (
            _lookup_obstacle(model, options, table)
            if use.kind == "lookup"
            else _product_obstacle(options, spec.counts, unit.shape[1], table)
        )
        if why:
            return why
    return ""


def _product_obstacle(
    options: list[Option], counts: tuple[int, ...], columns: int, table: Capabilities
) -> str:
    for option, rows in zip(options, counts, strict=True):
        kernel = table.kernel(option.bits)
        if kernel is None or option.group not in kernel.groups:
            return f"{table.target} has no fast kernel for {option}"
        if rows % kernel.row_multiple or columns % kernel.column_multiple:
            return (
                f"{table.target} wants {option.bits}-bit weights in multiples of "
                f"{kernel.row_multiple} rows x {kernel.column_multiple} columns, "
                f"these are {rows} x {columns}"
            )
    return ""


def _lookup_obstacle(model: ir.Model, options: list[Option], table: Capabilities) -> str:
    opset = model.opset_imports.get("", _OLDEST_OPSET)
    if opset < _OLDEST_OPSET:
        return f"opset {opset} cannot unpack bytes; opset {_OLDEST_OPSET} can"
    for option in options:
        if option.bits not in table.lookup_bits or option.bits not in PACKED_BITS:
            return f"{table.target} cannot look up rows of {option.bits} bits"
    return ""


def _result_type(unit: Unit, use: Use) -> ir.DataType:
    """Returns the type in which the consumer sees the weight, so also that of its result."""
    value = use.node.inputs[use.index]
    while value is not None and value is not unit.weight:
        view = value.producer()
        assert view is not None
        if view.op_type == "Cast":
            return ir.DataType(view.attributes.get_int("to"))
        value = view.inputs[0]
    return unit.tensor.dtype


def _lower(
    model: ir.Model, unit: Unit, spec: QuantSpec, context: PassContext, names: Names
) -> None:
    """Replaces all uses of ``unit`` and removes its float weight."""
    table = context.capabilities
    shared = Emitter(model.graph, names, unit.name, unit.anchor)
    stored = StoredUnit(unit, spec, context.arrays, shared)
    results = []
    for use in unit.uses:
        emit = Emitter(model.graph, names, unit.name, use.node)
        dtype = _result_type(unit, use)
        result = (
            emit_lookup(stored, use, dtype, table.lookup, emit)
            if use.kind == "lookup"
            else emit_product(stored, use, dtype, table, emit)
        )
        results.append((use.node, emit, result))
    model.graph.insert_before(unit.anchor, shared.nodes)
    for node, emit, result in results:
        _replace(model.graph, node, emit.nodes, result)
    _forget_weight(model.graph, unit)
    model.opset_imports.setdefault(CONTRIB, 1)


def _replace(graph: ir.Graph, old: ir.Node, new: list[ir.Node], result: ir.Value) -> None:
    """Puts ``new`` where ``old`` stood; notes and the output's name move along."""
    new[0].metadata_props.update(
        {
            key: text
            for key, text in old.metadata_props.items()
            if key not in new[0].metadata_props
        }
    )
    ir.convenience.replace_nodes_and_values(graph, old, [old], new, old.outputs, [result])


def _forget_weight(graph: ir.Graph, unit: Unit) -> None:
    for view in reversed(unit.views):
        if not view.outputs[0].uses():
            graph.remove(view, safe=True)
    if not unit.weight.uses():
        graph.initializers.pop(unit.name, None)
