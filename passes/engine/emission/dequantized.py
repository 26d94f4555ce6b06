"""A unit stored for DequantizeLinear, and the products that read it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ....ir import ArrayStore, Option, QuantSpec, Unit, Use
from ....ir.unit_arrays import RowClass, UnitArrays
from .emitter import Emitter
from .product import finished, joined
from .stored import StoredClass, StoredUnit

_BYTE = 8
WIDTHS: dict[int, type] = {
    4: ml_dtypes.int4,
    8: np.int8,
}  # of codes that the standard has a type for


def _code_type(option: Option) -> type:
    float8: type = ml_dtypes.float8_e4m3fn
    return float8 if option.float8 else WIDTHS[option.bits]


def _is_by_row(option: Option, columns: int) -> bool:
    """Tells whether a row is a group of bytes; no kernel takes codes of 4 bits by row."""
    return option.group == columns and option.bits == _BYTE


class DequantizedUnit(StoredUnit):
    """Codes as products read them: columns x rows, so that groups follow the first axis.

    A class with one scale per row has int8 codes and a vector of scales; any other has scales
    of groups x rows. Runtimes recognise only this layout as a product of packed codes.
    """

    def __init__(self, unit: Unit, spec: QuantSpec, arrays: ArrayStore, emit: Emitter) -> None:
        self._tables: dict[int, tuple[ir.Value, ir.Value]] = {}
        super().__init__(unit, spec, arrays, emit)

    def _stored_class(self, one: RowClass, own: UnitArrays) -> StoredClass:
        codes, scales = own.get("codes", one.index).T, own.get("scales", one.index).T
        scales = scales.astype(np.float16)
        return StoredClass(
            one.index,
            one.option,
            len(one.rows),
            one.offset,
            self._emit.constant(f"codes/{one.index}", codes.astype(_code_type(one.option))),
            self._emit.constant(
                f"scales/{one.index}",
                scales[0] if _is_by_row(one.option, self.columns) else scales,
            ),
        )

    def is_by_row(self, one: StoredClass) -> bool:
        """Tells whether a row of the class is a single group of bytes."""
        return _is_by_row(one.option, self.columns)

    def table(self, one: StoredClass) -> tuple[ir.Value, ir.Value]:
        """Returns the codes (int8, rows x columns) and scales (rows x groups) for lookups.

        They are made of what products read, by nodes that fold when the runtime loads the
        model. The product keeps the constant for itself then, and with it its fast kernel.
        """
        if one.index not in self._tables:
            self._tables[one.index] = self._emit_table(one)
        return self._tables[one.index]

    def floats(self, one: StoredClass, dtype: ir.DataType, emit: Emitter) -> ir.Value:
        """Emits the whole table of a class as floats, rows x columns."""
        weight, turned = _weight(self, one, dtype, emit, "table"), {"perm": [1, 0]}
        name = f"table/{one.index}/turned"
        table = emit.node("lookup", name, "Transpose", [weight], turned, dtype=dtype)
        table.shape = ir.Shape((one.rows, self.columns))
        return table

    def _emit_table(self, one: StoredClass) -> tuple[ir.Value, ir.Value]:
        codes, name = one.codes, f"table/{one.index}"
        int8, float16 = ir.DataType.INT8, ir.DataType.FLOAT16
        if one.option.bits < 8:
            to = {"to": int(int8)}
            codes = self._emit.node("lookup", f"{name}/wide", "Cast", [codes], to, dtype=int8)
        turned = {"perm": [1, 0]}
        codes = self._emit.node("lookup", name, "Transpose", [codes], turned, dtype=int8)
        name = f"steps/{one.index}"
        if self.is_by_row(one):
            column = self._emit.constant(f"{name}/dims", np.array([-1, 1], dtype=np.int64))
            inputs = [one.scales, column]
            return codes, self._emit.node("lookup", name, "Reshape", inputs, dtype=float16)
        inputs = [one.scales]
        scales = self._emit.node("lookup", name, "Transpose", inputs, turned, dtype=float16)
        return codes, scales


def emit_dequantized_product(
    stored: DequantizedUnit,
    use: Use,
    dtype: ir.DataType,
    quantized: ir.Value | None,
    emit: Emitter,
) -> ir.Value:
    """Emits the nodes that replace the MatMul or Gemm ``use.node``; returns its new output.

    Args:
        stored: The weight.
        use: The product.
        dtype: Type in which it computes.
        quantized: What classes with integer kernels read instead of the activation.
        emit: Where the nodes go.
    """
    parts = []
    for one in stored.classes:
        integers = quantized is not None and stored.is_by_row(one)
        activation = quantized if integers else use.activation
        weight = _weight(stored, one, dtype, emit)
        name = f"product/{one.index}"
        parts.append(emit.node("kernel", name, "MatMul", [activation, weight], dtype=dtype))
    return finished(use, joined(stored, use, parts, dtype, emit), dtype, emit)


def _weight(
    stored: DequantizedUnit,
    one: StoredClass,
    dtype: ir.DataType,
    emit: Emitter,
    name: str = "weight",
) -> ir.Value:
    """Emits the codes of a class as floats, columns x rows."""
    blocks = {"axis": 0, "block_size": one.option.group}
    how = {"axis": 1} if stored.is_by_row(one) else blocks
    inputs = [one.codes, stored.scales(one, dtype)]
    full = f"{name}/{one.index}"
    weight = emit.node("dequantize", full, "DequantizeLinear", inputs, how, dtype=dtype)
    weight.shape = ir.Shape((stored.columns, one.rows))
    return weight


def storable(unit: Unit, spec: QuantSpec) -> str:
    """Returns why DequantizeLinear cannot express the codes of ``unit``; empty if it can."""
    columns = unit.shape[1]
    if unit.uses[0].kind == "array":
        return "its readers take floats"
    for option in map(Option.parse, spec.options):
        if option.bits not in WIDTHS:
            return f"opset 21 has no type for codes of {option.bits} bits"
        if columns % option.group:
            return f"rows of {columns} columns are not made of whole groups of {option.group}"
    return ""
