"""Part of the input channels of a product, and products of such parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .emitter import Emitter
from .positions import emit_positions

INT32 = ir.DataType.INT32


class Selection:
    """Some channels of an activation: a Slice where they are neighbours, else a Gather."""

    def __init__(self, name: str, columns: np.ndarray, count: int, emit: Emitter) -> None:
        """Stores which channels of ``count`` they are, ascending."""
        self._name = name
        first, last = int(columns[0]), int(columns[-1])
        self._slices = np.array_equal(columns, np.arange(first, last + 1))
        if self._slices:
            bounds = {"from": first, "to": last + 1, "axis": -1}
            self._inputs = [
                emit.constant(f"{name}/{what}", np.array([number], dtype=np.int64))
                for what, number in bounds.items()
            ]
        else:
            self._inputs = [emit_positions(f"{name}/columns", columns, count, INT32, emit)]

    def of(self, activation: ir.Value, dtype: ir.DataType, emit: Emitter) -> ir.Value:
        """Emits the channels of ``activation``."""
        inputs = [activation, *self._inputs]
        if self._slices:
            return emit.node("permutation", self._name, "Slice", inputs, dtype=dtype)
        axis = {"axis": -1}
        return emit.node("permutation", self._name, "Gather", inputs, axis, dtype=dtype)


class SlimProduct:
    """Input channels that stay in 16 bits, as a product of their own."""

    def __init__(
        self, columns: np.ndarray, kept: np.ndarray, count: int, role: str, emit: Emitter
    ) -> None:
        """Stores values and places.

        Args:
            columns: Which of ``count`` channels.
            kept: Float16, channels x rows.
            count: Channels of the whole weight.
            role: The role of the product when bytes are counted.
            emit: Where load-time nodes go.
        """
        self._role, self._emit = role, emit
        self._kept = emit.constant("outliers", kept)
        self._selection = Selection("outliers/x", columns, count, emit)

    def added(
        self, product: ir.Value, activation: ir.Value, dtype: ir.DataType, emit: Emitter
    ) -> ir.Value:
        """Emits ``product`` plus the contribution of the kept channels of ``activation``."""
        inputs = [
            self._selection.of(activation, dtype, emit),
            emit_wide("outliers", self._kept, dtype, self._emit),
        ]
        slim = emit.node(self._role, "outliers/product", "MatMul", inputs, dtype=dtype)
        return emit_sum("outliers/sum", [product, slim], dtype, emit)


def emit_wide(name: str, value: ir.Value, dtype: ir.DataType, emit: Emitter) -> ir.Value:
    """Emits a Cast of stored halves, which the runtime computes at load."""
    if dtype == ir.DataType.FLOAT16:
        return value
    to = {"to": int(dtype)}
    return emit.node("dequantize", f"{name}/wide", "Cast", [value], to, dtype=dtype)


def emit_sum(
    name: str, parts: Sequence[ir.Value], dtype: ir.DataType, emit: Emitter
) -> ir.Value:
    """Emits the sum of values."""
    total = parts[0]
    for at, part in enumerate(parts[1:], start=1):
        total = emit.node("kernel", f"{name}/{at}", "Add", [total, part], dtype=dtype)
    return total
