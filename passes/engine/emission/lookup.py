"""Gather from a stored table: look up packed rows, then expand only those."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ....ir import Use
from ..numerics.packing import code_of_zero
from .dequantized import DequantizedUnit
from .emitter import CONTRIB, Emitter
from .stored import StoredClass, StoredUnit

Rows = Callable[[StoredClass, ir.Value], ir.Value]  # (class, ids) -> ids x columns

INT32 = ir.DataType.INT32
INT64 = ir.DataType.INT64
UINT8 = ir.DataType.UINT8
BOOL = ir.DataType.BOOL


def emit_lookup(
    stored: StoredUnit, use: Use, dtype: ir.DataType, form: str, emit: Emitter
) -> ir.Value:
    """Emits the nodes that replace the Gather ``use.node`` and returns its new output.

    Ids of unknown rank are flattened first; the result gets their shape back.

    Args:
        stored: The table.
        use: The Gather.
        dtype: Type of the looked-up rows.
        form: ``unpack``, ``gather-block-quantized``, ``dequantize`` or ``expand``.
        emit: Where the nodes go.
    """
    ids = use.activation
    if ids.shape is not None:
        lookup = _Lookup(stored, dtype, emit, rank=len(ids.shape))
        return lookup.rows(ids, form)
    lookup = _Lookup(stored, dtype, emit, rank=1)
    return _restored(ids, lookup.rows(lookup.reshape("ids", ids, [-1]), form), lookup)


def _restored(ids: ir.Value, found: ir.Value, lookup: _Lookup) -> ir.Value:
    """Emits the return from a flat list of rows to the shape of ``ids``."""
    columns = np.array([lookup.stored.columns], dtype=np.int64)
    width = lookup.emit.constant("columns", columns)
    dims = lookup.node("ids/dims", "Shape", [ids], INT64)
    shape = lookup.node("shape", "Concat", [dims, width], INT64, axis=0)
    return lookup.node("restored", "Reshape", [found, shape], lookup.dtype)


class _Lookup:
    """The pieces of one lookup whose ids have a known rank."""

    def __init__(
        self, stored: StoredUnit, dtype: ir.DataType, emit: Emitter, *, rank: int
    ) -> None:
        self.stored = stored
        self.dtype = dtype
        self.emit = emit
        self._lead = [0] * rank  # in a Reshape: the dimensions of the ids, unchanged

    def rows(self, ids: ir.Value, form: str) -> ir.Value:
        """Emits the rows that ``ids`` name."""
        forms: dict[str, Rows] = {
            "unpack": self.unpacked,
            "gather-block-quantized": self.block_quantized,
            "dequantize": self.dequantized,
            "expand": self.expanded,
        }
        return self._select(ids, forms[form])

    def node(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value],
        dtype: ir.DataType | None,
        **attributes: int | str,
    ) -> ir.Value:
        """Emits a standard node of the lookup."""
        return self.emit.node("lookup", name, op_type, inputs, attributes, dtype=dtype)

    def reshape(self, name: str, value: ir.Value, shape: list[int]) -> ir.Value:
        """Emits a Reshape to a fixed shape, where 0 keeps a dimension and -1 is the rest."""
        dims = self.emit.constant(f"{name}/dims", np.array(shape, dtype=np.int64))
        return self.node(name, "Reshape", [value, dims], value.dtype)

    def cast(self, name: str, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Emits a Cast unless ``value`` has the type already."""
        if value.dtype == dtype:
            return value
        return self.node(name, "Cast", [value], dtype, to=int(dtype))

    def number(self, name: str, value: int, dtype: ir.DataType) -> ir.Value:
        """Stores a scalar."""
        return self.emit.constant(name, np.array(value, dtype=dtype.numpy()))

    # Which class holds a row, and where in it

    def _select(self, ids: ir.Value, rows: Rows) -> ir.Value:
        """Looks every id up in each class and keeps the row of the class that holds it."""
        classes = self.stored.classes
        if len(classes) == 1:
            return rows(classes[0], ids)
        position = self._position(ids)
        starts = [self.number(f"offset/{one.index}", one.offset, INT32) for one in classes[1:]]
        before = [
            self.node(f"before/{at}", "Less", [position, start], BOOL)
            for at, start in enumerate(starts, start=1)
        ]
        zero = self.number("zero", 0, INT32)
        result = None
        for at, one in reversed(list(enumerate(classes))):
            local = self._local(at, position, starts, before, zero)
            result = self._prefer(at, rows(one, local), result, before)
        assert result is not None
        return result

    def _position(self, ids: ir.Value) -> ir.Value:
        """Emits the place of every id in stored order; ids may count from the end."""
        if self.stored.reordered:
            return self.node("position", "Gather", [self.stored.positions, ids], INT32)
        ids = self.cast("ids/int32", ids, INT32)
        negative = self.node("negative", "Less", [ids, self.number("first", 0, INT32)], BOOL)
        count = self.number("count", self.stored.rows, INT32)
        wrapped = self.node("wrapped", "Add", [ids, count], INT32)
        return self.node("position", "Where", [negative, wrapped, ids], INT32)

    def _local(
        self,
        at: int,
        position: ir.Value,
        starts: list[ir.Value],
        before: list[ir.Value],
        zero: ir.Value,
    ) -> ir.Value:
        """Emits the row inside class ``at``, and row 0 for ids that belong to others.

        Where and Less do it, because integer Min, Max and Clip came with opset 12.
        """
        local = position
        if at > 0:
            inside = self.node(f"inside/{at}", "Sub", [position, starts[at - 1]], INT32)
            local = self.node(f"from/{at}", "Where", [before[at - 1], zero, inside], INT32)
        if at < len(before):
            local = self.node(f"until/{at}", "Where", [before[at], local, zero], INT32)
        return local

    def _prefer(
        self, at: int, found: ir.Value, later: ir.Value | None, before: list[ir.Value]
    ) -> ir.Value:
        """Emits the choice between the rows of class ``at`` and those of all later ones."""
        if later is None:
            return found
        chosen = self.reshape(f"chosen/{at}", before[at], [*self._lead, 1])
        return self.node(f"rows/{at}", "Where", [chosen, found, later], self.dtype)

    # One class

    def unpacked(self, one: StoredClass, ids: ir.Value) -> ir.Value:
        """Emits the lookup of packed bytes and their expansion with standard nodes."""
        group, index = one.option.group, one.index
        groups = one.option.groups(self.stored.columns)
        codes = self.node(f"packed/{index}", "Gather", [one.codes, ids], UINT8)
        scales = self.node(f"scale/{index}", "Gather", [one.scales, ids], ir.DataType.FLOAT16)
        fields = self.reshape(
            f"code/{index}", self._fields(one, codes, groups), [*self._lead, groups, group]
        )
        stored = self.cast(f"code/{index}/wide", fields, self.dtype)
        zero = self.number(
            f"zero_code/{index}", code_of_zero(one.option.kernel_bits), self.dtype
        )
        signed = self.node(f"signed/{index}", "Sub", [stored, zero], self.dtype)
        return self._trimmed(one, self._scaled(one, signed, scales))

    def _scaled(self, one: StoredClass, codes: ir.Value, scales: ir.Value) -> ir.Value:
        """Emits the product of codes, ids x groups x group, and their scales, ids x groups."""
        index, groups = one.index, one.option.groups(self.stored.columns)
        wide = self.cast(f"scale/{index}/wide", scales, self.dtype)
        steps = self.reshape(f"step/{index}", wide, [*self._lead, groups, 1])
        values = self.node(f"value/{index}", "Mul", [codes, steps], self.dtype)
        return self.reshape(f"row/{index}", values, [*self._lead, groups * one.option.group])

    def dequantized(self, one: StoredClass, ids: ir.Value) -> ir.Value:
        """Emits the lookup of int8 codes, which a DequantizeLinear makes numbers of."""
        assert isinstance(self.stored, DequantizedUnit)
        index, group = one.index, one.option.group
        table, steps = self.stored.table(one)
        codes = self.node(f"codes/{index}/found", "Gather", [table, ids], ir.DataType.INT8)
        scales = self.node(f"scale/{index}", "Gather", [steps, ids], ir.DataType.FLOAT16)
        unit = self.number(f"unit/{index}", 1, self.dtype)
        signed = self.node(f"signed/{index}", "DequantizeLinear", [codes, unit], self.dtype)
        shape = [*self._lead, self.stored.columns // group, group]
        return self._scaled(one, self.reshape(f"code/{index}", signed, shape), scales)

    def expanded(self, one: StoredClass, ids: ir.Value) -> ir.Value:
        """Emits the lookup in a table of floats, which a DequantizeLinear makes of codes."""
        assert isinstance(self.stored, DequantizedUnit)
        table = self.stored.floats(one, self.dtype, self.emit)
        return self.node(f"found/{one.index}", "Gather", [table, ids], self.dtype)

    def _fields(self, one: StoredClass, codes: ir.Value, groups: int) -> ir.Value:
        """Emits the codes of every byte, lowest first.

        Division drops the lower fields, and Mod the higher ones, in floats, which hold bytes
        exactly. OpenVINO's BitShift keeps what leaves a byte, and rounds what is left of it;
        BitwiseAnd came with opset 18.
        """
        bits, index = one.option.kernel_bits, one.index
        if bits == 8:
            return codes
        size = one.option.group * bits // 8
        byte = self.reshape(f"byte/{index}", codes, [*self._lead, groups, size, 1])
        number = self.cast(f"number/{index}", byte, self.dtype)
        powers = (2.0 ** np.arange(0, 8, bits)).astype(self.dtype.numpy())
        divisors = self.emit.constant(f"powers/{index}", powers)
        low = self.node(f"low/{index}", "Div", [number, divisors], self.dtype)
        whole = self.node(f"whole/{index}", "Floor", [low], self.dtype)
        base = self.number(f"base/{index}", 1 << bits, self.dtype)
        return self.node(f"field/{index}", "Mod", [whole, base], self.dtype, fmod=1)

    def block_quantized(self, one: StoredClass, ids: ir.Value) -> ir.Value:
        """Emits com.microsoft GatherBlockQuantized.

        Its default zero point differs between providers, so it is given one, made of a single
        byte when the runtime loads the model.
        """
        bits, index = one.option.kernel_bits, one.index
        groups = one.option.groups(self.stored.columns)
        size = one.option.group * bits // 8
        table = self.reshape(f"table/{index}", one.codes, [one.rows, groups * size])
        byte = sum(code_of_zero(bits) << shift for shift in range(0, 8, bits))
        dims = np.array([one.rows, -(-groups * bits // 8)], dtype=np.int64)
        zero_points = self.node(
            f"zero_point/{index}",
            "Expand",
            [
                self.number(f"zero_code/{index}", byte, UINT8),
                self.emit.constant(f"zero_point/{index}/dims", dims),
            ],
            UINT8,
        )
        scales = self.stored.scales(one, self.dtype)
        found = self.emit.node(
            "lookup",
            f"block/{index}",
            "GatherBlockQuantized",
            [table, ids, scales, zero_points],
            {
                "bits": bits,
                "block_size": one.option.group,
                "gather_axis": 0,
                "quantize_axis": 1,
            },
            domain=CONTRIB,
            dtype=self.dtype,
        )
        return self._trimmed(one, found)

    def _trimmed(self, one: StoredClass, rows: ir.Value) -> ir.Value:
        """Emits a Slice that cuts the padding of the last group, where there is any."""
        columns = self.stored.columns
        if columns % one.option.group == 0:
            return rows
        name = f"unpadded/{one.index}"
        bounds = [
            self.emit.constant(f"{name}/{what}", np.array([value], dtype=np.int64))
            for what, value in (("from", 0), ("to", columns), ("axis", -1))
        ]
        return self.node(name, "Slice", [rows, *bounds], self.dtype)
