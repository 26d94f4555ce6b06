"""The pass ``lower-recurrent``: LSTMs that multiply integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir import (
    Option,
    QuantSpec,
    StoredPart,
    Unit,
    UsageError,
    drop_note,
    note_of,
    quantizable,
)
from ..ir.analysis.offered import is_recurrent
from ..ir.unit_arrays import UnitArrays
from .engine.emission.emitter import CONTRIB, Emitter, Names
from .engine.emission.replacing import forget_weight
from .engine.numerics.pair_sums import overflowing_rows
from .engine.pipeline.base import Pass, PassContext, Promise
from .engine.pipeline.forecast import Forecast, Headroom

_HINT = "add leave-headroom before lower-recurrent"
_NO_ROOM = "processors without VNNI would clip integer products of an LSTM"
_WEIGHTS = (1, 2)  # inputs of an LSTM: of what it reads, and of its own state
_OTHERS = 8  # inputs of an LSTM, absent ones too
_FLOAT, _INT8 = ir.DataType.FLOAT, ir.DataType.INT8


@dataclass(frozen=True)
class LowerRecurrent(Pass):
    """Let LSTMs whose weights have the option ``a8`` multiply integers.

    An LSTM becomes one ``com.microsoft.DynamicQuantizeLSTM`` with int8 codes, one scale for
    each row and direction. The runtime rounds what it reads to uint8, with one scale for all
    of it, and its state at each step. An LSTM of which only one weight has such codes stays,
    and its weights expand to floats when the runtime loads the model.

    What the rounding of activations loses is not predicted; ``verify-numerics`` measures it.
    ``leave-headroom`` has to come first, because processors without VNNI clip sums of two
    products.
    """

    name: ClassVar[str] = "lower-recurrent"
    reads = (QuantSpec,)
    writes = (StoredPart,)
    promise: ClassVar[Promise] = Promise.SAME_SIMULATION

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses codes without headroom."""
        if forecast.get(Headroom) is None:
            raise UsageError(_NO_ROOM, hint=_HINT)

    def run(self, model: ir.Model, context: PassContext) -> bool:
        integer = {
            (unit.anchor, unit.uses[0].index): unit
            for unit in quantizable(model)
            if _is_integer(unit)
        }
        names, lowered = Names(model), []
        for node in list(model.graph):
            weights = [integer.get((node, at)) for at in _WEIGHTS]
            units = [unit for unit in weights if unit is not None]
            if len(units) == len(_WEIGHTS):
                _lower(model.graph, node, units, context, names)
                lowered.append(str(node.name))
        if lowered:
            model.opset_imports.setdefault(CONTRIB, 1)
        context.report[self.name] = {"lowered": lowered, "untimed": bool(lowered)}
        return bool(lowered)


def _is_integer(unit: Unit) -> bool:
    """Tells whether one LSTM reads a unit, with all rows in codes for an integer kernel."""
    spec = note_of(unit.notes, QuantSpec)
    if spec is None or len(spec.options) != 1 or len(unit.uses) != 1:
        return False
    return Option.parse(spec.options[0]).integer and is_recurrent(unit.uses[0])


def _lower(
    graph: ir.Graph, node: ir.Node, units: list[Unit], context: PassContext, names: Names
) -> None:
    """Replaces an LSTM and forgets its weights."""
    inputs = [*node.inputs, *[None] * (_OTHERS - len(node.inputs))]
    emit = Emitter(graph, names, str(node.name), node)
    for at, unit in zip(_WEIGHTS, units, strict=True):
        shared = Emitter(graph, names, unit.name, node)
        inputs[at], scales, zeros = _stored(unit, context, shared)
        inputs += [scales, zeros]
        emit.nodes += shared.nodes
        drop_note(unit.notes, QuantSpec)
    outputs = [
        ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs
    ]
    kept = [one for one in node.attributes.values() if one.name != "layout"]
    made = ir.Node(CONTRIB, "DynamicQuantizeLSTM", inputs, kept, outputs=outputs)
    made.name = names.free(f"{node.name}/integers")
    made.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [*emit.nodes, made], node.outputs, outputs
    )
    for unit in units:
        forget_weight(graph, unit)
        UnitArrays(unit.name, context.arrays).discard("codes", "")


def _stored(
    unit: Unit, context: PassContext, emit: Emitter
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Stores codes (directions x columns x rows); returns them with scales and zero points.

    The zero points are all zero, and made of the scales when the runtime loads the model.
    """
    own, (rows, _) = UnitArrays(unit.name, context.arrays), unit.shape
    codes, steps = own.get("codes", 0).astype(np.int8), own.get("scales", 0)
    directions = steps.shape[1]
    apart = codes[np.argsort(own.order(rows))].reshape(rows, directions, -1)
    if overflowing_rows(apart.reshape(rows * directions, -1)).any():
        raise UsageError(f"{_NO_ROOM}: unit {unit.name!r}", hint=_HINT)
    stored = emit.constant("codes", apart.transpose(1, 2, 0))
    narrow = emit.constant("scales", steps.astype(np.float16).T)
    scales = emit.node(
        "dequantize", "scales/float", "Cast", [narrow], {"to": int(_FLOAT)}, dtype=_FLOAT
    )
    none = emit.node("dequantize", "zeros/float", "Sub", [scales, scales], dtype=_FLOAT)
    zeros = emit.node("dequantize", "zeros", "Cast", [none], {"to": int(_INT8)}, dtype=_INT8)
    return stored, scales, zeros
