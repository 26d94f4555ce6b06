"""Codes as MatMulNBits stores them: blocks of bytes, the first code in the lowest bits."""

from __future__ import annotations

import numpy as np

PACKED_BITS = (2, 4, 8)  # widths that divide a byte


def code_of_zero(bits: int) -> int:
    """Returns the stored code of the value zero, which kernels without zero points assume."""
    return 1 << (bits - 1)


def pack(codes: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Packs signed codes into bytes; the last group of a row is filled with zeros.

    Args:
        codes: int8, rows x columns, each in ``[-2^(bits-1), 2^(bits-1) - 1]``.
        bits: 2, 4 or 8.
        group: Columns that share a scale.

    Returns:
        uint8, rows x groups x (group * bits / 8).
    """
    rows, columns = codes.shape
    groups = -(-columns // group)
    stored = np.full((rows, groups * group), code_of_zero(bits), dtype=np.uint8)
    stored[:, :columns] = (codes.astype(np.int16) + code_of_zero(bits)).astype(np.uint8)
    fields = stored.reshape(rows, groups, -1, 8 // bits)
    packed = np.zeros(fields.shape[:-1], dtype=np.uint8)
    for place in range(8 // bits):
        packed |= fields[..., place] << np.uint8(place * bits)
    return packed


def unpack(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Returns the signed codes (int8, rows x columns) of ``pack``'s result."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    flat = fields.reshape(packed.shape[0], -1)[:, :columns]
    return (flat.astype(np.int16) - code_of_zero(bits)).astype(np.int8)
