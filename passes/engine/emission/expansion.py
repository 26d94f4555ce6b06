"""Codes that a runtime expands to the width of a kernel when it loads the model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..numerics.dense_codes import dense_layout, zero_byte
from .emitter import Emitter

_UINT8 = ir.DataType.UINT8
_MIDDLE = 128  # zero point of the weights, which are signed while kernels want bytes


def emit_expansion(
    name: str, packed: np.ndarray, bits: int, kernel_bits: int, group: int, emit: Emitter
) -> ir.Value:
    """Stores dense codes and emits the nodes that turn them into what a kernel reads.

    The three nodes compute on constants alone, so they run once, when the model is loaded, and
    nothing of them is left (see ``dense_codes`` for the formula):

        %fields = BitShift <RIGHT> (@packed, @shifts)
        %bytes = QLinearConv(%fields, @weights, scales of one, zero point)
        %codes = Reshape(%bytes)

    ONNX Runtime keeps every value on the way until all constants are computed: at the peak, a
    load holds four to five times the bytes of the codes that stay.

    Args:
        name: Name of the initializer and of the result.
        packed: What ``pack_dense`` returns.
        bits: Width of a code in the file.
        kernel_bits: Width of a code for the kernel: 4 or 8.
        group: Columns that share a scale.
        emit: Where nodes and initializers go.

    Returns:
        uint8, rows x groups x (group * kernel_bits / 8): ``pack(codes, kernel_bits, group)``.
    """
    layout = dense_layout(bits, kernel_bits)
    rows, periods, _ = packed.shape
    size = group * kernel_bits // 8
    groups = periods * layout.bytes // size
    stored = emit.constant(name, packed[:, None])
    fields = emit.node(
        "expansion",
        f"{name}/fields",
        "BitShift",
        [stored, _shared(emit, layout.bits, kernel_bits, "shifts", layout.shifts[:, None])],
        {"direction": "RIGHT"},
        dtype=_UINT8,
    )
    codes = _joined(name, fields, bits, kernel_bits, emit)
    dims = emit.shared(f"expand/{size}/dims", np.array([0, -1, size], dtype=np.int64))
    result = emit.node("expansion", f"{name}/wide", "Reshape", [codes, dims], dtype=_UINT8)
    result.shape = ir.Shape([rows, groups, size])
    return result


def _joined(
    name: str, fields: ir.Value, bits: int, kernel_bits: int, emit: Emitter
) -> ir.Value:
    """Emits the sums of fields: a convolution of integers, so small that it is exact."""
    weights = (dense_layout(bits, kernel_bits).weights + _MIDDLE).astype(np.uint8)
    one = emit.shared("expand/one", np.array(1, dtype=np.float32))
    none = emit.shared("expand/none", np.array(0, dtype=np.uint8))
    middle = emit.shared("expand/middle", np.array(_MIDDLE, dtype=np.uint8))
    kernel = _shared(emit, bits, kernel_bits, "weights", weights[:, :, None])
    zero = np.array(zero_byte(bits, kernel_bits), dtype=np.uint8)
    offset = _shared(emit, bits, kernel_bits, "zero", zero)
    inputs = [fields, one, none, kernel, one, middle, one, offset]
    return emit.node("expansion", f"{name}/bytes", "QLinearConv", inputs, dtype=_UINT8)


def _shared(
    emit: Emitter, bits: int, kernel_bits: int, name: str, array: np.ndarray
) -> ir.Value:
    return emit.shared(f"expand/{bits}to{kernel_bits}/{name}", array)
