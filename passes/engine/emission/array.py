"""A weight that its readers take as floats: codes, and nodes that expand them at load."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....ir import (
    ArrayStore,
    Capabilities,
    Option,
    OutlierColumns,
    QuantSpec,
    Unit,
    note_of,
)
from ....ir.analysis.offered import array_obstacle
from ....ir.unit_arrays import RowClass, UnitArrays
from ..numerics.packing import code_of_zero, pack
from .emitter import Emitter, Names
from .positions import emit_positions
from .replacing import replace_weight

_FLOAT, _INT32 = ir.DataType.FLOAT, ir.DataType.INT32
# The opsets from which Slice takes its bounds as inputs, and Mod works on floats.
_SLICE_BY_INPUTS, _MOD = 10, 10


def expand_unit(
    graph: ir.Graph, unit: Unit, spec: QuantSpec, arrays: ArrayStore, names: Names
) -> None:
    """Lets the readers of ``unit`` read floats that are made of its codes."""
    emit = Emitter(graph, names, unit.name, unit.anchor)
    replace_weight(graph, unit, emit_array(unit, spec, arrays, emit), emit)
    UnitArrays(unit.name, arrays).discard("codes", "")  # the graph holds them now


def emit_array(unit: Unit, spec: QuantSpec, arrays: ArrayStore, emit: Emitter) -> ir.Value:
    """Emits the nodes that make the whole weight of its codes; returns what replaces it.

    All of them compute on constants, so a runtime does so once, when it loads the model, and
    its readers are as quick as ever. Rows x columns come first, row class by row class:

        %codes = Cast(@codes)                 8 or 16 bits; of fewer, bytes are taken apart
        %rows  = Mul(%codes, Cast(@scales))

    then Concat and Gather bring the rows into order, and Reshape and Transpose the axes.
    """
    return _Expansion(unit, arrays, emit).weight(spec)


def expandable(unit: Unit, spec: QuantSpec, table: Capabilities) -> bool:
    """Tells whether the codes of ``unit`` can be expanded to floats."""
    options, stored = table.array_options(unit.shape[1]), map(Option.parse, spec.options)
    known = all(option.integer or option in options for option in stored)
    kept = note_of(unit.notes, OutlierColumns) is not None
    return known and not kept and not array_obstacle(unit)


class _Expansion:
    """The pieces of one expansion."""

    def __init__(self, unit: Unit, arrays: ArrayStore, emit: Emitter) -> None:
        self._unit = unit
        self._rows, self._columns = unit.shape
        self._own = UnitArrays(unit.name, arrays)
        graph = unit.anchor.graph
        self._opset = graph.opset_imports.get("", 1) if graph is not None else 1
        self._emit = emit

    def weight(self, spec: QuantSpec) -> ir.Value:
        """Emits all of it."""
        classes = self._own.row_classes(spec.options, spec.counts)
        parts = [self._class(one) for one in classes]
        return self._cast(self._laid_out(self._sorted(parts)))

    def _class(self, one: RowClass) -> ir.Value:
        """Emits the rows of a class, rows x columns."""
        rows, group = len(one.rows), one.option.group
        codes = self._codes(one)
        scales = self._scales(one)
        name = f"rows/{one.index}"
        if group == self._columns:
            return self._node(name, "Mul", [codes, scales], (rows, self._columns))
        groups = one.option.groups(self._columns)
        split = self._reshape(f"groups/{one.index}", codes, (rows, groups, group))
        values = self._node(
            f"values/{one.index}", "Mul", [split, scales], (rows, groups, group)
        )
        return self._reshape(name, values, (rows, self._columns))

    def _codes(self, one: RowClass) -> ir.Value:
        """Emits the codes of a class as floats, rows x columns."""
        codes, bits, at = self._own.get("codes", one.index), one.option.bits, one.index
        name, dims = f"codes/{at}", codes.shape
        if bits >= 8:
            stored = self._emit.constant(name, codes)
            return self._node(f"{name}/float", "Cast", [stored], dims, to=int(_FLOAT))
        fields = 8 // bits
        packed = pack(codes, bits, -(-self._columns // fields) * fields)[:, 0]
        stored = self._emit.constant(name, packed[..., None])
        wide = packed.shape[1] * fields
        flat = self._reshape(f"{name}/flat", self._fields(name, stored, bits), (dims[0], wide))
        if wide > self._columns:
            flat = self._unpadded(f"{name}/unpadded", flat, dims)
        zero = self._number(bits, "zero", code_of_zero(bits))
        return self._node(f"{name}/float", "Sub", [flat, zero], dims)

    def _fields(self, name: str, stored: ir.Value, bits: int) -> ir.Value:
        """Emits the codes of every byte as floats, the lowest first: rows x bytes x codes.

        Of a byte t that was shifted down by a multiple of ``bits``, the lowest bits are
        ``t mod 2^bits``; in float32 all of it is exact. Mod came with opset 10; before, it is
        ``t - 2^bits floor(t / 2^bits)``.
        """
        assert stored.shape is not None
        rows, size = stored.shape.numpy()[:2]
        one, all_fields = (rows, size, 1), (rows, size, 8 // bits)
        down = self._number(bits, "down", 0.5 ** np.arange(0, 8, bits))
        base = self._number(bits, "base", 2.0**bits)
        value = self._node(f"{name}/bytes", "Cast", [stored], one, to=int(_FLOAT))
        value = self._node(f"{name}/shifted", "Mul", [value, down], all_fields)
        value = self._node(f"{name}/whole", "Floor", [value], all_fields)
        if self._opset >= _MOD:
            return self._node(f"{name}/fields", "Mod", [value, base], all_fields, fmod=1)
        inverse = self._number(bits, "inverse", 0.5**bits)
        above = self._node(f"{name}/above", "Mul", [value, inverse], all_fields)
        above = self._node(f"{name}/high", "Floor", [above], all_fields)
        above = self._node(f"{name}/rest", "Mul", [above, base], all_fields)
        return self._node(f"{name}/fields", "Sub", [value, above], all_fields)

    def _number(self, bits: int, name: str, value: float | np.ndarray) -> ir.Value:
        """Stores what unpacking codes of a width needs, once for all units."""
        return self._emit.shared(f"unpack/{bits}/{name}", np.asarray(value, dtype=np.float32))

    def _unpadded(self, name: str, value: ir.Value, dims: tuple[int, ...]) -> ir.Value:
        """Emits the first columns of ``value``."""
        bounds = {"starts": 0, "ends": dims[1], "axes": 1}
        if self._opset < _SLICE_BY_INPUTS:
            starts, ends, axes = ([at] for at in bounds.values())
            return self._node(
                name, "Slice", [value], dims, starts=starts, ends=ends, axes=axes
            )
        inputs = [
            self._emit.constant(f"{name}/{what}", np.array([at], dtype=np.int64))
            for what, at in bounds.items()
        ]
        return self._node(name, "Slice", [value, *inputs], dims)

    def _scales(self, one: RowClass) -> ir.Value:
        """Emits the scales of a class as floats, rows x 1 or rows x groups x 1."""
        scales = self._own.get("scales", one.index).astype(np.float16)
        if one.option.group < self._columns:
            scales = scales[:, :, None]
        name = f"scales/{one.index}"
        stored = self._emit.constant(name, scales)
        return self._node(f"{name}/float", "Cast", [stored], scales.shape, to=int(_FLOAT))

    def _sorted(self, parts: list[ir.Value]) -> ir.Value:
        """Emits the return from the stored order of rows to that of the weight."""
        dims = (self._rows, self._columns)
        whole = parts[0]
        if len(parts) > 1:
            whole = self._node("sorted", "Concat", parts, dims, axis=0)
        order = self._own.order(self._rows)
        if np.array_equal(order, np.arange(self._rows)):
            return whole
        places = np.argsort(order)
        positions = emit_positions("positions", places, self._rows, _INT32, self._emit)
        return self._node("ordered", "Gather", [whole, positions], dims, axis=0)

    def _laid_out(self, matrix: ir.Value) -> ir.Value:
        """Emits the return from rows x columns to the layout of the weight."""
        dims, axis = tuple(self._unit.tensor.shape.numpy()), self._unit.row_axis
        moved = (dims[axis], *dims[:axis], *dims[axis + 1 :])
        if all(one == 1 for one in dims[:axis]):
            moved, axis = dims, 0  # an axis that passes axes of one entry moves nothing
        value = matrix
        if moved != (self._rows, self._columns):
            value = self._reshape("shaped", value, moved)
        if axis == 0:
            return value
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(dims))]
        return self._node("turned", "Transpose", [value], dims, perm=order)

    def _cast(self, value: ir.Value) -> ir.Value:
        dtype = self._unit.tensor.dtype
        if dtype == _FLOAT:
            return value
        dims = tuple(self._unit.tensor.shape.numpy())
        return self._node("typed", "Cast", [value], dims, dtype, to=int(dtype))

    def _reshape(self, name: str, value: ir.Value, dims: tuple[int, ...]) -> ir.Value:
        shape = self._emit.constant(f"{name}/dims", np.array(dims, dtype=np.int64))
        return self._node(name, "Reshape", [value, shape], dims)

    def _node(
        self,
        name: str,
        op_type: str,
        inputs: list[ir.Value],
        dims: tuple[int, ...],
        dtype: ir.DataType = _FLOAT,
        **attributes: int | list[int],
    ) -> ir.Value:
        made = self._emit.node("expansion", name, op_type, inputs, attributes, dtype=dtype)
        made.shape = ir.Shape(dims)
        return made
