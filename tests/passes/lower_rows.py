"""lower-rows: a small lowering pass, as tests/test_new_lowering.py adds one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from mpqc.ir import QuantSpec, StoredPart, drop_note, note_of, quantizable
from mpqc.passes.engine.emission.emitter import Emitter, Names
from mpqc.passes.engine.emission.replacing import replace_weight
from mpqc.passes.engine.pipeline.base import Pass, PassContext


@dataclass(frozen=True)
class LowerRows(Pass):
    """Store weights as int8 codes and a scale for each row, read by a DequantizeLinear.

    Attributes:
        largest: The largest code.
    """

    name: ClassVar[str] = "lower-rows"
    reads = (QuantSpec,)
    writes = (StoredPart,)
    drops = (QuantSpec,)

    largest: int = 127

    def run(self, model: ir.Model, context: PassContext) -> bool:
        names = Names(model)
        units = [u for u in quantizable(model) if note_of(u.notes, QuantSpec) is not None]
        for unit in units:
            drop_note(unit.notes, QuantSpec)
            matrix = unit.matrix()
            scales = np.abs(matrix).max(axis=1).astype(np.float32) / self.largest
            codes = np.rint(matrix / scales[:, None]).astype(np.int8)
            emit = Emitter(model.graph, names, unit.name, unit.anchor)
            stored = [
                emit.constant("codes", unit.stored_layout(codes)),
                emit.constant("scales", scales),
            ]
            dtype, axis = unit.tensor.dtype, {"axis": unit.row_axis}
            weight = emit.node(
                "dequantize", "dequantized", "DequantizeLinear", stored, axis, dtype=dtype
            )
            weight.shape = unit.weight.shape
            replace_weight(model.graph, unit, weight, emit)
        context.report[self.name] = {"lowered": len(units)}
        return bool(units)
