"""The pass ``lower-channels``: levels of input channels become nodes that runtimes have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...ir import (
    Annotation,
    ChannelAllocation,
    ChannelSpec,
    LeftInFloat,
    OutlierColumns,
    OutlierEntries,
    StoredPart,
    Unit,
    annotate,
    drop_note,
    need_note,
    note_of,
    quantizable,
)
from ...ir.analysis.offered import result_type
from ..engine.emission.emitter import CONTRIB, Emitter, Names
from ..engine.emission.lookup import emit_lookup
from ..engine.emission.product import emit_kernel, finished
from ..engine.emission.replacing import forget_weight, replace_node, replace_weight
from ..engine.pipeline.base import Pass, PassContext, Promise
from .channel_codes import ChannelArrays, emit_float, emit_on_grid
from .split_product import KeptOutliers, SplitChannels

_OPSETS = {"expansion": (11, "GatherElements"), "entries": (16, "ScatterElements that adds")}


@dataclass(frozen=True)
class LowerChannels(Pass):
    """Replace rounded weights by the stored form of their channels.

    - Free levels: indices, float16 codebooks and a GatherElements that builds the weight, with
      outliers in place. No kernel reads codebooks, so the weight is *dequantized at run time*:
      once, when ONNX Runtime loads the model and computes everything that depends on
      constants. From then on it is as large as the original, which ``mpqc inspect`` shows as
      resident bits.
    - Levels on a grid: indices and codebooks of integers, which become the codes of one stock
      MatMulNBits at load, exact to the simulation.
    - Even levels: one MatMulNBits per width, on the channels of that width, and their sum.

    With levels on a grid and even levels, outlier channels become a slim MatMul, and single
    outliers a Gather, a Mul and a ScatterElements that adds.
    """

    name: ClassVar[str] = "lower-channels"
    reads: ClassVar[tuple[type[Annotation], ...]] = (ChannelSpec, ChannelAllocation)
    writes: ClassVar[tuple[type[Annotation], ...]] = (StoredPart,)
    drops: ClassVar[tuple[type[Annotation], ...]] = (
        ChannelSpec,
        OutlierColumns,
        OutlierEntries,
    )
    promise: ClassVar[Promise] = Promise.SAME_SIMULATION

    def run(self, model: ir.Model, context: PassContext) -> bool:
        """Lowers every unit that ``quantize-channels`` has rounded."""
        names = Names(model)
        forms: dict[str, int] = {}
        skipped = {}
        for unit in quantizable(model):
            if note_of(unit.notes, ChannelSpec) is None:
                continue
            note = need_note(unit.notes, ChannelAllocation)
            why = _obstacle(model, unit, note)
            for one in self.drops:
                drop_note(unit.notes, one)
            if why:
                skipped[unit.name] = why
                annotate(unit.notes, LeftInFloat(unit.name, why))
            else:
                _lower(model, unit, note, context, names)
                forms[_label(note)] = forms.get(_label(note), 0) + 1
        context.report[self.name] = {"lowered": forms, "skipped": skipped}
        return bool(forms or skipped)


def _label(note: ChannelAllocation) -> str:
    return "dequantized at run time" if note.levels == "free" else note.levels


def _obstacle(model: ir.Model, unit: Unit, note: ChannelAllocation) -> str:
    """Returns why the model's operators cannot express the unit; empty when they can."""
    opset = model.graph.opset_imports.get("", 1)
    # Free levels have their outliers in place already.
    entries = note_of(unit.notes, OutlierEntries) is not None and note.levels != "free"
    for wanted, (oldest, operator) in _OPSETS.items():
        if opset < oldest and (wanted == "expansion" or entries):
            return f"opset {opset} has no {operator}; opset {oldest} has"
    return ""


def _lower(
    model: ir.Model,
    unit: Unit,
    note: ChannelAllocation,
    context: PassContext,
    names: Names,
) -> None:
    """Replaces all uses of ``unit`` and removes its float weight."""
    given = ChannelArrays(unit, note, context.arrays)
    shared = Emitter(model.graph, names, unit.name, unit.anchor)
    if note.levels == "free":
        replace_weight(model.graph, unit, emit_float(given, shared), shared)
    else:
        _lower_codes(model, given, context, names, shared)
        forget_weight(model.graph, unit)
    for what in ("indices/", "levels/", "outliers/", "scales", "channels"):
        context.arrays.discard(f"{unit.name}/{what}")  # the graph holds them now


def _lower_codes(
    model: ir.Model,
    given: ChannelArrays,
    context: PassContext,
    names: Names,
    shared: Emitter,
) -> None:
    table = context.capabilities
    split = SplitChannels(given, shared) if given.note.levels == "even" else None
    stored = (
        split.stored_unit()
        if split is not None
        else emit_on_grid(given, _kernel_group(given, context), shared)
    )
    outliers = KeptOutliers(given, shared)
    results = []
    for use in given.unit.uses:
        emit = Emitter(model.graph, names, given.unit.name, use.node)
        dtype = result_type(given.unit, use)
        if use.kind == "lookup":
            result = emit_lookup(stored, use, dtype, table.lookup, emit)
        else:
            if split is not None:
                result = split.product(stored, use, dtype, table, emit)
            else:
                (one,), columns = stored.classes, stored.columns
                scales = stored.scales(one, dtype)
                result = emit_kernel(one, columns, scales, use.activation, dtype, table, emit)
            result = outliers.added(result, use, dtype, emit)
            result = finished(use, result, dtype, emit)
        results.append((use.node, emit, result))
    model.graph.insert_before(given.unit.anchor, shared.nodes)
    for node, emit, result in results:
        replace_node(model.graph, node, emit.nodes, result)
    model.opset_imports.setdefault(CONTRIB, 1)


def _kernel_group(given: ChannelArrays, context: PassContext) -> int:
    """Returns the group of the kernel: that of the scales, or any when a row has one scale."""
    if given.note.group:
        return given.note.group
    kernel = context.capabilities.kernel(8)
    assert kernel is not None, "checked when levels were chosen"
    return max(kernel.groups)
