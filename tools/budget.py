"""What the user asks for: stored bits per weight, or the size of all files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from ..ir import UsageError

MOST_BITS = 32.0
_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([kmg]?i?b)\s*\Z", re.IGNORECASE)
_HINT = "write stored bits per weight, like 3.5, or the size of all files, like 60MB"


@dataclass(frozen=True)
class Budget:
    """Exactly one of two bounds.

    Attributes:
        bits: Stored bits per weight.
        size: Bytes of all files.
        expand: Whether weights may take more room in memory than in the file.
    """

    bits: float | None = None
    size: int | None = None
    expand: bool = False

    def __str__(self) -> str:
        asked = f"{self.size} bytes" if self.bits is None else f"{self.bits:g} bits per weight"
        return f"{asked} in the file" if self.expand else asked

    @classmethod
    def of(cls, budget: float | str | None, file_budget: float | str | None) -> Budget:
        """Reads the one of the two that was given.

        Raises:
            UsageError: Neither or both were given, or it is no budget.
        """
        if budget is not None and file_budget is not None:
            raise UsageError(
                "a budget and a file budget say different things",
                hint="a file budget bounds the file alone; a budget what stays in memory too",
            )
        if file_budget is not None:
            return replace(cls.parse(file_budget), expand=True)
        if budget is None:
            raise UsageError("no budget was given", hint=_HINT)
        return cls.parse(budget)

    @classmethod
    def parse(cls, asked: float | str) -> Budget:
        """Reads ``3.5``, ``"3.5"`` or ``"60MB"`` (MB: a million bytes; MiB: 2^20).

        Raises:
            UsageError: It is no budget, or one that no model can use.
        """
        size = _SIZE.match(asked) if isinstance(asked, str) else None
        if size is not None:
            return cls._of_size(str(asked), float(size[1]) * _UNITS[size[2].lower()])
        if isinstance(asked, bool):
            raise UsageError(f"the budget {asked!r} is no number", hint=_HINT)
        try:
            bits = float(asked)
        except (TypeError, ValueError) as error:
            comma = isinstance(asked, str) and re.fullmatch(r"\s*\d+,\d+\s*", asked)
            hint = f"write {asked.strip().replace(',', '.')}" if comma else _HINT  # type: ignore[union-attr]
            raise UsageError(f"the budget {asked!r} is no number", hint=hint) from error
        if not math.isfinite(bits) or not 0 < bits <= MOST_BITS:
            raise UsageError(
                f"the budget {bits:g} is not between 0 and {MOST_BITS:g} bits per weight",
                hint=_HINT,
            )
        return cls(bits=bits)

    @classmethod
    def _of_size(cls, asked: str, size: float) -> Budget:
        if not 1 <= size < 2**60:
            raise UsageError(f"the budget {asked!r} is no possible size of files", hint=_HINT)
        return cls(size=int(size))
