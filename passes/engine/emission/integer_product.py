"""A product of integers: activations rounded as they come, weights stored as int8 codes.

    %q, %s, %z = DynamicQuantizeLinear(%x)             once for all that read %x
    %y = Mul(Cast(MatMulInteger(%q, @codes, %z)), Mul(%s, @scales))

ONNX Runtime makes one kernel of the second line, with the bias that may follow.
"""

from __future__ import annotations

import onnx_ir as ir

from .emitter import Emitter
from .stored import StoredClass

_FLOAT, _UINT8, _INT32 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT32


def emit_integer_product(
    row_class: StoredClass, scales: ir.Value, activation: ir.Value, emit: Emitter
) -> ir.Value:
    """Emits the product of an activation in float32 and a class of rows.

    Args:
        row_class: The rows, with int8 codes.
        scales: Float32, one for each row.
        activation: What they are multiplied by.
        emit: Where the nodes go.
    """
    name = f"product/{row_class.index}"
    codes, step, zero = emit.once_behind(
        activation, "DynamicQuantizeLinear", (_UINT8, _FLOAT, _UINT8)
    )
    inputs = [codes, row_class.codes, zero]
    total = emit.node("kernel", f"{name}/sum", "MatMulInteger", inputs, dtype=_INT32)
    wide = emit.node(None, f"{name}/float", "Cast", [total], {"to": int(_FLOAT)}, dtype=_FLOAT)
    steps = emit.node("dequantize", f"{name}/steps", "Mul", [step, scales], dtype=_FLOAT)
    return emit.node(None, name, "Mul", [wide, steps], dtype=_FLOAT)
