"""A weight of any layout as codes and a DequantizeLinear; its readers stay as they were."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....ir import ArrayStore, Unit
from ....ir.unit_arrays import UnitArrays
from .emitter import Emitter


def emit_dequantized_weight(unit: Unit, arrays: ArrayStore, emit: Emitter) -> ir.Value:
    """Emits the nodes that make the weight from int8 codes; returns what replaces it.

    The codes keep the layout of the weight, one float16 scale for each of its rows:

        %w = DequantizeLinear <axis = row axis> (@codes, Cast(@scales))

    ONNX Runtime folds no DequantizeLinear when it loads a model, so what stays in memory is
    the codes; they are expanded for each run.
    """
    dtype = unit.tensor.dtype
    own = UnitArrays(unit.name, arrays)
    matrix = own.get("codes", 0)
    codes = emit.constant("codes", unit.stored_layout(matrix.astype(np.int8)))
    scales = emit.constant("scales", own.get("scales", 0)[:, 0])
    if dtype != ir.DataType.FLOAT16:
        to = {"to": int(dtype)}
        scales = emit.node("dequantize", "scales/wide", "Cast", [scales], to, dtype=dtype)
    axis = {"axis": unit.row_axis}
    weight = emit.node(
        "dequantize", "dequantized", "DequantizeLinear", [codes, scales], axis, dtype=dtype
    )
    weight.shape = unit.weight.shape
    return weight
