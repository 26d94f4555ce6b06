"""What lowering stores beside codes and scales."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from ....ir import Capabilities, Option, Unit
from ....ir.analysis.offered import expands_to_floats
from ..numerics.dense_codes import dense_layout

POSITIONS_IN_UINT16 = 1 << 16  # rows of a unit whose positions fit into uint16
_RESIDENT_POSITION = 4  # int32
_HALF, _FLOAT = 2, 4
_BYTE = 8  # bits
_SLICE_BYTES = 24
_EXPANSION_BYTES = 6  # a float32 one, two zero points
_WIDTH_BYTES = 1  # the zero point of a width
_SIZE_BYTES = 24  # of a shape
_GRID_BYTES = 5  # a float32 scale and a zero point
_FACTOR_BYTES = 4  # alpha or beta of a Gemm, in float32
_LOOKUP_BYTES = 256  # shapes, shifts and offsets of one row class in one lookup, at most
_AXIS_BYTES = 8  # of an array's shape
_PLACE_BYTES = 8  # of an array's shapes and bounds


def order_bytes(rows: int) -> int:
    """Returns the bytes of a row order: the position of every row."""
    return rows * (2 if rows <= POSITIONS_IN_UINT16 else 4)


def overhead_bytes(unit: Unit, options: Collection[Option], table: Capabilities) -> int:
    """Returns how many bytes ``lower-matmul-nbits`` adds to codes and scales, at most.

    Exact for products in float32; lookups and arrays add a few small shapes, for which this is
    an upper bound.

    Args:
        unit: The unit.
        options: Those that its rows are stored with.
        table: What the target can do.
    """
    order = order_bytes(unit.shape[0]) if len(options) > 1 else 0
    return unit_bytes(unit, table) + order + sum(class_bytes(unit, options, table))


def unit_bytes(unit: Unit, table: Capabilities) -> int:
    """Returns the share of ``overhead_bytes`` that no choice of options changes."""
    if expands_to_floats(unit, table):
        return _AXIS_BYTES * len(unit.tensor.shape)
    return sum(_factors(use.node) for use in unit.uses) * _FACTOR_BYTES


def class_bytes(unit: Unit, options: Iterable[Option], table: Capabilities) -> list[int]:
    """Returns the share of ``overhead_bytes`` of each option that some rows have."""
    if expands_to_floats(unit, table):
        return [_array_class_bytes(option, unit.shape[1]) for option in options]
    lookups = sum(use.kind == "lookup" for use in unit.uses)
    return [lookups * _LOOKUP_BYTES for _ in options]


def _array_class_bytes(option: Option, columns: int) -> int:
    """Returns the bytes of the shapes and bounds that one row class of an array needs."""
    places = 0
    if option.bits < _BYTE:
        places += 2 + (3 if columns * option.bits % _BYTE else 0)
    if option.group < columns:
        places += 3 + 2
    return _PLACE_BYTES * places


def unpacking_bytes(units: Iterable[Unit], table: Capabilities) -> int:
    """Returns the bytes of the numbers that all arrays share, at most."""
    if not any(expands_to_floats(unit, table) for unit in units):
        return 0
    return sum(_FLOAT * (3 + 8 // bits) for bits in table.array_bits if bits < 8)


def _factors(node: ir.Node) -> int:
    """Returns how many factors of a Gemm become constants."""
    names = ("alpha", "beta") if len(node.inputs) > 2 else ("alpha",)
    return sum(
        node.op_type == "Gemm" and node.attributes.get_float(name, 1.0) != 1.0
        for name in names
    )


def outlier_bytes(unit: Unit, columns: int) -> int:
    """Returns the bytes of input channels that stay in 16 bits, and of where they are.

    The latter is an upper bound: neighbours are told by a Slice, others by their positions.
    """
    rows, width = unit.shape
    places = max(columns * order_bytes(width) // width, _SLICE_BYTES)
    return columns * rows * _HALF + places if columns else 0


def input_bytes(unit: Unit, table: Capabilities) -> int:
    """Returns the bytes that ``insert-qdq`` may add for the unit's activations, at most."""
    if table.lowering != "insert-qdq":
        return 0
    return _GRID_BYTES * sum(use.kind in ("product", "conv") for use in unit.uses)


def resident_bytes(
    unit: Unit,
    rows: Iterable[tuple[Option, int]],
    table: Capabilities,
    *,
    reordered: bool,
    kept: int = 0,
) -> int:
    """Returns about how many bytes the unit takes once a runtime has loaded it.

    A kernel packs codes for itself, so those that a lookup reads too are there twice.

    Args:
        unit: The unit.
        rows: Options with the number of rows that have them.
        table: What the target can do.
        reordered: Whether rows change their order.
        kept: Input channels that stay in 16 bits.
    """
    columns = unit.shape[1]
    if expands_to_floats(unit, table):
        return unit.size * _FLOAT
    kinds = {use.kind for use in unit.uses}
    row_order = unit.shape[0] * _RESIDENT_POSITION if reordered else 0
    codes = sum(option.resident_row_bytes(columns) * count for option, count in rows)
    columns_kept = kept * (unit.shape[0] * _FLOAT + _RESIDENT_POSITION)
    return codes * len(kinds) + row_order + columns_kept


def expansion_bytes(options: Iterable[Option]) -> int:
    """Returns the bytes that all units whose codes expand at load share in a model."""
    expanding = [option for option in options if option.expands]
    widths = {(one.bits, one.kernel_bits) for one in expanding}
    sizes = {one.group * one.kernel_bits for one in expanding}
    layouts = [dense_layout(*width) for width in widths]
    tables = sum(one.shifts.size + one.weights.size + _WIDTH_BYTES for one in layouts)
    return tables + _SIZE_BYTES * len(sizes) + (_EXPANSION_BYTES if widths else 0)
