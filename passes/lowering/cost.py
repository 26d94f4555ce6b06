"""What lowering stores beside codes and scales."""

from __future__ import annotations

from ...ir import Unit

POSITIONS_IN_UINT16 = 1 << 16  # rows of a unit whose positions fit into uint16
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
