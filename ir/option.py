"""An option: one way to store the rows of a unit, and what it costs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import UsageError

SCALE_BYTES = 2  # scales are stored as float16
_TEXT = re.compile(r"(\d+)g(\d+)\Z")


@dataclass(frozen=True, order=True)
class Option:
    """Symmetric codes of ``bits`` bits with one signed float16 scale per ``group`` columns.

    The printed form is ``4g64``. A code ``q`` in ``[-2^(bits-1), 2^(bits-1) - 1]`` stands for
    ``q * scale``; the stored code is ``q + 2^(bits-1)``, which is what MatMulNBits expects
    when it has no zero points.
    """

    bits: int
    group: int

    def __str__(self) -> str:
        return f"{self.bits}g{self.group}"

    @classmethod
    def parse(cls, text: str) -> Option:
        """Reads ``4g64``.

        Raises:
            UsageError: The text is no option.
        """
        match = _TEXT.match(text)
        if match is None:
            raise UsageError(
                f"{text!r} is no storage option", hint="write BITSgGROUP, like 4g64"
            )
        return cls(int(match.group(1)), int(match.group(2)))

    def groups(self, columns: int) -> int:
        """Returns how many groups a row of ``columns`` weights has (the last one padded)."""
        return -(-columns // self.group)

    def row_bytes(self, columns: int) -> int:
        """Returns the stored bytes of one row: padded codes and scales."""
        groups = self.groups(columns)
        return groups * self.group * self.bits // 8 + groups * SCALE_BYTES
