"""The stored form of one unit: initializers and load-time nodes that all its uses share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from ....ir import ArrayStore, Option, QuantSpec, Unit
from ..numerics.dense_codes import pack_dense
from ..numerics.packing import pack
from .cost import POSITIONS_IN_UINT16
from .emitter import Emitter
from .expansion import emit_expansion


@dataclass(frozen=True)
class RowClass:
    """The rows of a unit that share an option.

    Attributes:
        index: Which class of the unit.
        option: How the rows are stored.
        rows: Number of rows.
        offset: Position of the first one in stored order.
        codes: As the kernel reads them, uint8, rows x groups x bytes: an initializer, or
            expanded from one when the runtime loads the model.
        scales: Initializer, float16, rows x groups.
    """

    index: int
    option: Option
    rows: int
    offset: int
    codes: ir.Value
    scales: ir.Value


class StoredUnit:
    """Writes a unit's codes, scales and row order once, and hands them to every use.

    What only depends on initializers is folded when the runtime loads the model, so scales
    widened to the type of the activations and the widened row order cost nothing per run.

    Attributes:
        unit: The unit.
        rows: Number of rows.
        columns: Number of columns, without padding.
        classes: Its rows by option.
    """

    def __init__(self, unit: Unit, spec: QuantSpec, arrays: ArrayStore, emit: Emitter) -> None:
        self.unit = unit
        self.rows, self.columns = unit.shape
        self._emit = emit
        self._scales: dict[tuple[int, ir.DataType], ir.Value] = {}
        self.classes = tuple(self._classes(spec, arrays))
        self._inverse = _inverse_order(unit.name, len(spec.options), arrays)

    def _classes(self, spec: QuantSpec, arrays: ArrayStore) -> list[RowClass]:
        found: list[RowClass] = []
        offset = 0
        for index, (text, rows) in enumerate(zip(spec.options, spec.counts, strict=True)):
            option = Option.parse(text)
            codes = arrays.get(f"{spec.unit}/codes/{index}")
            scales = arrays.get(f"{spec.unit}/scales/{index}").astype(np.float16)
            packed = emit_codes(f"codes/{index}", codes, option, self._emit)
            stored = self._emit.constant(f"scales/{index}", scales)
            found.append(RowClass(index, option, rows, offset, packed, stored))
            offset += rows
        return found

    def scales(self, row_class: RowClass, dtype: ir.DataType) -> ir.Value:
        """Returns the scales of a class as ``dtype``, rows x groups."""
        if dtype == ir.DataType.FLOAT16:
            return row_class.scales
        key = (row_class.index, dtype)
        if key not in self._scales:
            self._scales[key] = self._emit.node(
                "dequantize",
                f"scales/{row_class.index}/{dtype.name.lower()}",
                "Cast",
                [row_class.scales],
                {"to": int(dtype)},
                dtype=dtype,
            )
        return self._scales[key]

    @property
    def reordered(self) -> bool:
        """Whether stored order differs from the order that consumers see."""
        return self._inverse is not None

    @cached_property
    def positions(self) -> ir.Value:
        """Int32 by row: its position in stored order."""
        assert self._inverse is not None
        if self.rows > POSITIONS_IN_UINT16:
            return self._emit.constant("positions", self._inverse.astype(np.int32))
        stored = self._emit.constant("positions", self._inverse.astype(np.uint16))
        return self._emit.node(
            "permutation",
            "positions/int32",
            "Cast",
            [stored],
            {"to": int(ir.DataType.INT32)},
            dtype=ir.DataType.INT32,
        )


class ExpandedUnit(StoredUnit):
    """A unit in one class whose codes and scales have been emitted already."""

    def __init__(self, unit: Unit, row_class: RowClass, emit: Emitter) -> None:
        super().__init__(unit, QuantSpec(unit.name, (), (), "nearest"), ArrayStore(), emit)
        self.classes = (row_class,)


def emit_codes(name: str, codes: np.ndarray, option: Option, emit: Emitter) -> ir.Value:
    """Stores signed codes; returns them as the kernel for ``option`` reads them."""
    bits, kernel_bits, group = option.bits, option.kernel_bits, option.group
    if not option.expands:
        return emit.constant(name, pack(codes, bits, group))
    dense = pack_dense(codes, bits, kernel_bits, group)
    return emit_expansion(name, dense, bits, kernel_bits, group, emit)


def _inverse_order(unit: str, classes: int, arrays: ArrayStore) -> np.ndarray | None:
    """Returns the position of every row in stored order, or None when nothing moved."""
    if classes == 1 or f"{unit}/order" not in arrays:
        return None
    order = arrays.get(f"{unit}/order")
    if np.array_equal(order, np.arange(order.size)):
        return None
    inverse = np.empty_like(order)
    inverse[order] = np.arange(order.size, dtype=order.dtype)
    return inverse
