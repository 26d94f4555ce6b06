"""An option: one way to store the rows of a unit, and its cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import UsageError

SCALE_BYTES = 2  # scales are stored as float16
KERNEL_WIDTHS = (2, 4, 8)  # of the codes that kernels read
_WHOLE_BYTE = 8
HALF = "f16"  # how an option without codes is written
_WIDE_BITS = 16
_TEXT = re.compile(r"(\d+)g(\d+)(a8|f8)?\Z")
_WITH_ACTIVATIONS = "a8"  # behind an option whose kernel multiplies integers
_FLOAT8 = "f8"  # behind an option whose codes are floats


@dataclass(frozen=True, order=True)
class Option:
    """Symmetric codes of ``bits`` bits with one signed float16 scale per ``group`` columns.

    The printed form is ``4g64``. Codes of 3, 5, 6 and 7 bits have no kernel of their own: the
    file stores them densely, and when it loads the model the runtime expands them to the width
    of the next wider kernel. Codes of 16 bits are for what takes floats anyway. A code ``q``
    in ``[-2^(bits-1), 2^(bits-1) - 1]`` stands for ``q * scale``; kernels read
    ``q + 2^(bits-1)``, which is what MatMulNBits expects when it has no zero points.

    ``8g576a8`` is for kernels that multiply integers: the activations that meet the codes are
    rounded to 8 bits too, with one scale for all of them. A group is the whole row then.

    ``8g576f8`` has codes that are floats of 8 bits (E4M3: 4 of the exponent, 3 of the
    mantissa) instead of integers.

    ``f16`` has no codes: the file stores float16 numbers, which the runtime widens when it
    loads the model.

    Attributes:
        bits: Width of a code in the file, from 2 to 8, or 16; 16 for ``f16``.
        group: Columns that share a scale; 0 for ``f16``.
        integer: Whether activations are rounded too.
        float8: Whether codes are floats.
    """

    bits: int
    group: int
    integer: bool = False
    float8: bool = False

    @classmethod
    def half(cls) -> Option:
        """Returns ``f16``."""
        return cls(_WIDE_BITS, 0)

    @property
    def is_half(self) -> bool:
        """Whether rows are stored as float16, without codes."""
        return self.group == 0

    def __str__(self) -> str:
        if self.is_half:
            return HALF
        kind = _WITH_ACTIVATIONS if self.integer else _FLOAT8 if self.float8 else ""
        return f"{self.bits}g{self.group}{kind}"

    @classmethod
    def parse(cls, text: str) -> Option:
        """Reads ``4g64``, ``8g576a8`` or ``f16``.

        Raises:
            UsageError: The text is not an option.
        """
        if text == HALF:
            return cls.half()
        match = _TEXT.match(text)
        option = None
        if match is not None:
            kind = match[3]
            option = cls(
                int(match[1]), int(match[2]), kind == _WITH_ACTIVATIONS, kind == _FLOAT8
            )
        known = (*range(KERNEL_WIDTHS[0], KERNEL_WIDTHS[-1] + 1), _WIDE_BITS)
        odd = option is not None and option.float8 and option.bits != _WHOLE_BYTE
        if option is None or option.bits not in known or not option.group or odd:
            raise UsageError(
                f"{text!r} is not a storage option",
                hint="write BITSgGROUP, like 4g64, with 2 to 8 or 16 bits",
            )
        return option

    @property
    def kernel_bits(self) -> int:
        """Width of the codes that the kernel reads, and that stay in memory.

        Of 16 bits, which no kernel of codes reads, it is its own.
        """
        return next((bits for bits in KERNEL_WIDTHS if bits >= self.bits), self.bits)

    @property
    def expands(self) -> bool:
        """Whether codes take more room in memory than in the file."""
        return self.kernel_bits != self.bits

    def groups(self, columns: int) -> int:
        """Returns how many groups a row of ``columns`` weights has (the last one padded)."""
        return -(-columns // self.group)

    def row_bytes(self, columns: int) -> int:
        """Returns the stored bytes of one row: padded codes and scales, or numbers."""
        if self.is_half:
            return columns * self.bits // 8
        return self._row_bytes(columns, self.bits, SCALE_BYTES)

    def resident_row_bytes(self, columns: int) -> int:
        """Returns the bytes of one row in memory, with scales or numbers as float32."""
        if self.is_half:
            return 2 * columns * self.bits // 8
        return self._row_bytes(columns, self.kernel_bits, 2 * SCALE_BYTES)

    def _row_bytes(self, columns: int, bits: int, scale: int) -> int:
        groups = self.groups(columns)
        return -(-groups * self.group * bits // 8) + groups * scale
