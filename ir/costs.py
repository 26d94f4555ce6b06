"""How long the operations of a target take on one kind of machine, as data.

An operation on ``tokens`` rows of activations, with ``columns`` input and ``rows`` output
channels, takes::

    call + column * columns + row * rows + (weight + cold) * rows * columns

microseconds, with coefficients for each of a few numbers of tokens. ``cold`` counts where the
weights of a model do not fit into the last cache, so that every run reads them from memory.
Kernels take input channels in chunks, and a chunk that is not full takes as long as one that
is, so ``columns`` are rounded up to whole chunks. Of what only moves values, ``columns`` are
the output channels once more: the more there are, the longer each takes, as less of them is in
a cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from .option import Option

FLOAT = "float"
INT8 = "int8"
CONCAT = "concat"
ORDER = "order"
SELECT = "select"
_MOST_CHANNELS = 1 << 16  # that are slower the more there are


@dataclass(frozen=True)
class Cost:
    """The coefficients of one operation, each for every number of tokens of its table.

    Attributes:
        call: Microseconds of a call.
        column: Microseconds for 1000 input channels.
        row: Microseconds for 1000 output channels.
        weight: Microseconds for a million weights that are in the cache.
        cold: What it takes more to read them from memory.
        chunk: Input channels that the kernel takes at once.
    """

    call: tuple[float, ...]
    column: tuple[float, ...]
    row: tuple[float, ...]
    weight: tuple[float, ...]
    cold: tuple[float, ...]
    chunk: int = 1


@dataclass(frozen=True)
class Machine:
    """Where a table was measured.

    Attributes:
        processor: What it calls itself.
        kind: Its instructions, as far as kernels differ by them, such as ``avx512-vnni``.
        runtime: Name and version of the runtime.
        threads: Threads of one operation.
        cache: Bytes of the last cache.
    """

    processor: str
    kind: str
    runtime: str
    threads: int
    cache: int


@dataclass(frozen=True)
class CostTable:
    """What operations take on a machine.

    Attributes:
        name: Name of the table.
        machine: Where it was measured.
        source: How it came about, in one line.
        tokens: The numbers of tokens that there are coefficients for, ascending.
        operations: By name: ``float`` (the MatMul that a unit was), ``int8``
            (DynamicQuantizeMatMul), the options of kernels, such as ``4g64``, and what joins
            row classes: ``concat``, ``order`` and ``select``.
    """

    name: str
    machine: Machine
    source: str
    tokens: tuple[int, ...]
    operations: Mapping[str, Cost]

    def kernel(self, option: Option) -> str:
        """Returns the operation of the kernel for ``option``, or that of the nearest group."""
        if option.integer:
            return INT8
        bits = option.kernel_bits
        groups = [
            one.group
            for one in map(_option, self.operations)
            if one is not None and one.bits == bits
        ]
        if not groups:
            return FLOAT
        group = min(groups, key=lambda known: (abs(known - option.group), known))
        return str(Option(bits, group))

    def parts(self, operation: str, tokens: float, *, cold: bool) -> Parts:
        """Returns what an operation takes for so many tokens, apart by what it grows with."""
        cost = self.operations[operation]
        weights = cost.weight
        if cold:
            weights = tuple(a + b for a, b in zip(weights, cost.cold, strict=True))
        return Parts(
            self._at(cost.call, tokens),
            self._at(cost.column, tokens) / 1e3,
            self._at(cost.row, tokens) / 1e3,
            self._at(weights, tokens) / 1e6,
            cost.chunk,
        )

    def time(
        self, operation: str, tokens: float, rows: int, columns: int = 0, *, cold: bool = False
    ) -> float:
        """Returns how many microseconds an operation takes."""
        return self.parts(operation, tokens, cold=cold).time(rows, columns)

    def moving(self, operation: str, tokens: float, channels: int) -> float:
        """Returns how many microseconds it takes to move channels by an operation."""
        return self.time(operation, tokens, channels, min(channels, _MOST_CHANNELS))

    def _at(self, known: tuple[float, ...], tokens: float) -> float:
        """Interpolates between numbers of tokens; beyond the last it goes on in proportion."""
        last = self.tokens[-1]
        if tokens >= last:
            return known[-1] * tokens / last
        if tokens <= self.tokens[0]:
            return known[0]
        at = bisect_right(self.tokens, tokens) - 1
        (low, high), (below, above) = (
            list(pairwise(self.tokens))[at],
            list(pairwise(known))[at],
        )
        return below + (above - below) * (tokens - low) / (high - low)


@dataclass(frozen=True)
class Parts:
    """Microseconds of an operation: of the call, and for each channel and weight."""

    call: float
    column: float
    row: float
    weight: float
    chunk: int

    def time(self, rows: int, columns: int) -> float:
        """Returns the microseconds for a shape."""
        return self.shared(columns) + self.each_row(columns) * rows

    def shared(self, columns: int) -> float:
        """Returns what does not depend on the number of rows."""
        return self.call + self.column * self._padded(columns)

    def each_row(self, columns: int) -> float:
        """Returns what one more row takes."""
        return self.row + self.weight * self._padded(columns)

    def _padded(self, columns: int) -> int:
        return -(-columns // self.chunk) * self.chunk


def _option(name: str) -> Option | None:
    bits, _, group = name.partition("g")
    return Option(int(bits), int(group)) if bits.isdigit() and group.isdigit() else None
