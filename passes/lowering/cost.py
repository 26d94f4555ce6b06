"""What lowering stores beside codes and scales."""

from __future__ import annotations

from collections.abc import Iterable

from ...ir import Option, Unit
from ..numerics.dense_codes import dense_layout

POSITIONS_IN_UINT16 = 1 << 16  # rows of a unit whose positions fit into uint16
_EXPANSION_BYTES = 6  # a float32 one, two zero points
_WIDTH_BYTES = 1  # the zero point of a width
_SIZE_BYTES = 24  # of a shape
_LOOKUP_BYTES = 256  # shapes, shifts and offsets of one row class in one lookup, at most


def order_bytes(rows: int) -> int:
    """Returns the bytes of a row order: the position of every row."""
    return rows * (2 if rows <= POSITIONS_IN_UINT16 else 4)


def overhead_bytes(unit: Unit, classes: int, *, reordered: bool = True) -> int:
    """Returns how many bytes ``lower-matmul-nbits`` adds to codes and scales, at most.

    Exact for products; lookups add a few small shapes, for which this is an upper bound.

    Args:
        unit: The unit.
        classes: Options that its rows are stored with.
        reordered: Whether rows change their order.
    """
    order = order_bytes(unit.shape[0]) if classes > 1 and reordered else 0
    lookups = sum(use.kind == "lookup" for use in unit.uses)
    return order + lookups * classes * _LOOKUP_BYTES


def expansion_bytes(options: Iterable[Option]) -> int:
    """Returns the bytes that all units whose codes expand at load share in a model."""
    expanding = [option for option in options if option.expands]
    widths = {(one.bits, one.kernel_bits) for one in expanding}
    sizes = {one.group * one.kernel_bits for one in expanding}
    layouts = [dense_layout(*width) for width in widths]
    tables = sum(one.shifts.size + one.weights.size + _WIDTH_BYTES for one in layouts)
    return tables + _SIZE_BYTES * len(sizes) + (_EXPANSION_BYTES if widths else 0)
