"""Codes of a width for which there is no kernel, stored without a wasted bit.

A kernel of ``k`` bits reads bytes of ``8 / k`` codes. Where a code needs only ``b < k`` bits,
each byte keeps ``8 - 8 b / k`` bits free. So some of the bytes need not be stored as they are:
their bits lie in the free bits of the others. At 3 bits of 4, three stored bytes hold the two
codes of one byte each, and in their upper two bits together the two codes of a fourth.

Going back is linear once bits are shifted down. With ``s >> a`` for the byte ``s`` shifted
down by ``a``, the bits from ``a`` to below ``b`` are worth ``(s >> a) - 2^(b - a) (s >> b)``.
With a table of shifts and a table of integer weights every byte of the kernel is therefore

    byte_o = zero + sum over (field f, stored byte r) of weights[o, f, r] (s_r >> shifts[f, r])

which is a BitShift and a convolution: two nodes that a runtime computes when it loads a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import gcd

import numpy as np

from .packing import code_of_zero, stored_fields

_TOP = 7  # what is shifted by this much is a bit


@dataclass(frozen=True)
class _Run:
    """Bits that lie side by side both in a stored byte and in a byte of the kernel.

    Attributes:
        stored: Which stored byte of the period.
        start: Its lowest bit there.
        size: How many bits.
        byte: Which byte of the kernel.
        place: Its lowest bit there.
    """

    stored: int
    start: int
    size: int
    byte: int
    place: int


@dataclass(frozen=True)
class DenseLayout:
    """Where the bits of ``bytes`` bytes for a kernel lie in ``stored`` bytes of a file.

    Attributes:
        bits: Width of a code in the file.
        kernel_bits: Width of a code in the bytes that the kernel reads: 4 or 8.
        stored: Stored bytes of a period.
        bytes: Bytes for the kernel of a period.
        shifts: uint8, fields x stored.
        weights: int64, bytes x fields x stored, each within int8.
    """

    bits: int
    kernel_bits: int
    stored: int
    bytes: int
    shifts: np.ndarray
    weights: np.ndarray

    def store(self, kernel_bytes: np.ndarray) -> np.ndarray:
        """Returns the stored form of ``kernel_bytes``, whose codes are not yet offset.

        Args:
            kernel_bytes: uint8, rows x bytes of a row, with ``bits`` low bits in each code.

        Returns:
            uint8, rows x periods x stored.
        """
        parts = kernel_bytes.reshape(len(kernel_bytes), self.bytes, -1)
        result = np.zeros((parts.shape[0], parts.shape[2], self.stored), dtype=np.uint8)
        for run in _runs(self.bits, self.kernel_bits):
            field = (parts[:, run.byte] >> np.uint8(run.place)) & np.uint8((1 << run.size) - 1)
            result[..., run.stored] |= field << np.uint8(run.start)
        return result

    def expand(self, stored: np.ndarray) -> np.ndarray:
        """Undoes ``store``, by the formula above with ``zero = 0``."""
        fields = stored[:, :, None, :] >> self.shifts
        parts: np.ndarray = np.einsum("ofr,npfr->nop", self.weights, fields.astype(np.int64))
        return parts.astype(np.uint8).reshape(len(stored), -1)


@cache
def dense_layout(bits: int, kernel_bits: int) -> DenseLayout:
    """Returns the layout of ``bits``-bit codes for a kernel of 4 or 8 bits.

    >>> layout = dense_layout(3, 4)
    >>> layout.stored, layout.bytes
    (3, 4)
    """
    runs = list(_runs(bits, kernel_bits))
    stored, size = _period(bits, kernel_bits)
    starts = [sorted({run.start for run in runs if run.stored == at}) for at in range(stored)]
    fields = max(map(len, starts))
    starts = [one + [_TOP] * (fields - len(one)) for one in starts]
    weights = np.zeros((size, fields, stored), dtype=np.int64)
    for run in runs:
        field, end = starts[run.stored].index, run.start + run.size
        weights[run.byte, field(run.start), run.stored] += 1 << run.place
        if end < 8:
            weights[run.byte, field(end), run.stored] -= 1 << (run.place + run.size)
    shifts = np.array(starts, dtype=np.uint8).T
    return DenseLayout(bits, kernel_bits, stored, size, shifts, weights)


def _period(bits: int, kernel_bits: int) -> tuple[int, int]:
    """Returns how many stored bytes make how many bytes for the kernel."""
    common = gcd(bits, kernel_bits)
    return bits // common, kernel_bits // common


def _runs(bits: int, kernel_bits: int) -> Iterator[_Run]:
    """Yields every run of bits: first the bytes stored as they are, then the hidden ones."""
    stored, size = _period(bits, kernel_bits)
    codes = range(8 // kernel_bits)
    for byte in range(stored):
        for code in codes:
            yield _Run(byte, code * bits, bits, byte, code * kernel_bits)
    at, start = 0, len(codes) * bits  # the next free bit
    for byte in range(stored, size):
        for code in codes:
            done = 0
            while done < bits:
                taken = min(bits - done, 8 - start)
                yield _Run(at, start, taken, byte, code * kernel_bits + done)
                done, start = done + taken, start + taken
                if start == 8:
                    at, start = at + 1, len(codes) * bits


def pack_dense(codes: np.ndarray, bits: int, kernel_bits: int, group: int) -> np.ndarray:
    """Packs signed codes into as few bytes as they need.

    Args:
        codes: int8, rows x columns, each in ``[-2^(bits-1), 2^(bits-1) - 1]``.
        bits: Width of a code in the file.
        kernel_bits: Width of a code in the bytes that the kernel reads: 4 or 8.
        group: Columns that share a scale, a multiple of 16; the last group of a row is filled
            with zeros.

    Returns:
        uint8, rows x periods x stored bytes of a period.
    """
    fields = stored_fields(codes, bits, kernel_bits, group)
    return dense_layout(bits, kernel_bits).store(fields.reshape(len(codes), -1))


def zero_byte(bits: int, kernel_bits: int) -> int:
    """Returns what ``DenseLayout.expand`` lacks for kernels that have no zero points.

    They assume the code ``2^(kernel_bits - 1)`` for zero; what is stored has ``2^(bits - 1)``.
    """
    missing = code_of_zero(kernel_bits) - code_of_zero(bits)
    return sum(missing << place for place in range(0, 8, kernel_bits))
