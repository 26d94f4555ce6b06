"""The stored form of one unit: initializers and load-time nodes that all its uses share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from ....ir import ArrayStore, Option, QuantSpec, Unit
from ....ir.unit_arrays import RowClass, UnitArrays
from ..numerics.dense_codes import pack_dense
from ..numerics.packing import pack
from .cost import POSITIONS_IN_UINT16
from .emitter import Emitter
from .expansion import emit_expansion


@dataclass(frozen=True)
class StoredClass:
    """The rows of a unit that share an option.

    Attributes:
        index: Which class of the unit.
        option: How the rows are stored.
        rows: Number of rows.
        offset: Position of the first one in stored order.
        codes: As the kernel reads them, uint8, rows x groups x bytes: an initializer, or
            expanded from one when the runtime loads the model. Those of kernels that multiply
            integers are int8, columns x rows.
        scales: Initializer, float16, rows x groups, or a vector where a row is a group of
            integers.
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
        own = UnitArrays(unit.name, arrays)
        classes = own.row_classes(spec.options, spec.counts) if spec.options else []
        self.classes = tuple(self._stored_class(one, own) for one in classes)
        self._inverse = _inverse(own.order(self.rows))

    def _stored_class(self, one: RowClass, own: UnitArrays) -> StoredClass:
        """Stores the codes and scales of a class."""
        if one.option.integer:
            return self._integer_class(one, own)
        scales = own.get("scales", one.index).astype(np.float16)
        packed = emit_codes(
            f"codes/{one.index}", own.get("codes", one.index), one.option, self._emit
        )
        stored = self._emit.constant(f"scales/{one.index}", scales)
        return StoredClass(one.index, one.option, len(one.rows), one.offset, packed, stored)

    def _integer_class(self, one: RowClass, own: UnitArrays) -> StoredClass:
        """Stores int8 codes as products of integers read them: columns x rows."""
        codes = own.get("codes", one.index).astype(np.int8).T
        scales = own.get("scales", one.index)[:, 0].astype(np.float16)
        return StoredClass(
            one.index,
            one.option,
            len(one.rows),
            one.offset,
            self._emit.constant(f"codes/{one.index}", codes),
            self._emit.constant(f"scales/{one.index}", scales),
        )

    def scales(self, row_class: StoredClass, dtype: ir.DataType) -> ir.Value:
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

    def __init__(self, unit: Unit, row_class: StoredClass, emit: Emitter) -> None:
        super().__init__(unit, QuantSpec(unit.name, (), (), "nearest"), ArrayStore(), emit)
        self.classes = (row_class,)


def emit_codes(name: str, codes: np.ndarray, option: Option, emit: Emitter) -> ir.Value:
    """Stores signed codes; returns them as the kernel for ``option`` reads them."""
    bits, kernel_bits, group = option.bits, option.kernel_bits, option.group
    if not option.expands:
        return emit.constant(name, pack(codes, bits, group))
    dense = pack_dense(codes, bits, kernel_bits, group)
    return emit_expansion(name, dense, bits, kernel_bits, group, emit)


def _inverse(order: np.ndarray) -> np.ndarray | None:
    """Returns the position of every row in stored order, or None when nothing moved."""
    if np.array_equal(order, np.arange(order.size)):
        return None
    inverse = np.empty_like(order)
    inverse[order] = np.arange(order.size)
    return inverse
