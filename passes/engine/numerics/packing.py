"""Codes as MatMulNBits stores them: blocks of bytes, the first code in the lowest bits."""

from __future__ import annotations

import numpy as np


def code_of_zero(bits: int) -> int:
    """Returns the stored code of the value zero, which kernels without zero points assume."""
    return 1 << (bits - 1)


def stored_fields(codes: np.ndarray, bits: int, kernel_bits: int, group: int) -> np.ndarray:
    """Returns signed codes as unsigned ones, ``8 / kernel_bits`` of them to a byte.

    Args:
        codes: int8, rows x columns, each in ``[-2^(bits-1), 2^(bits-1) - 1]``.
        bits: Width of a code.
        kernel_bits: Width of its place in the byte: 2, 4 or 8, and at least ``bits``.
        group: Columns that share a scale; the last group of a row is filled with zeros.

    Returns:
        uint8, rows x groups x (group * kernel_bits / 8), the first code in the lowest bits.
    """
    rows, columns = codes.shape
    groups = -(-columns // group)
    stored = np.full((rows, groups * group), code_of_zero(bits), dtype=np.uint8)
    stored[:, :columns] = (codes.astype(np.int16) + code_of_zero(bits)).astype(np.uint8)
    fields = stored.reshape(rows, groups, -1, 8 // kernel_bits)
    packed = np.zeros(fields.shape[:-1], dtype=np.uint8)
    for place in range(8 // kernel_bits):
        packed |= fields[..., place] << np.uint8(place * kernel_bits)
    return packed


def pack(codes: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Packs signed codes of 2, 4 or 8 bits as kernels read them.

    Returns:
        uint8, rows x groups x (group * bits / 8).
    """
    return stored_fields(codes, bits, bits, group)


def unpack(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Returns the signed codes (int8, rows x columns) of ``pack``'s result."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    flat = fields.reshape(packed.shape[0], -1)[:, :columns]
    return (flat.astype(np.int16) - code_of_zero(bits)).astype(np.int8)
