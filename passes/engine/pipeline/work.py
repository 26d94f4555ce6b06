"""What a pass has to do, in amounts that are the same on every machine.

A pass counts what it multiplies, walks over, reads and writes (``Pass.work``). How quick a
machine is at each kind is measured elsewhere; the rates here are those of a plain machine,
which are good enough to compare passes with one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType


class Kind(Enum):
    """What work consists of; the unit of its amount, on all cores together.

    Attributes:
        SWEEP: Multiply-adds of blocks that the executor runs, attention and norms included.
        COARSE: The same with products that round to bfloat16 where that is quick.
        PRODUCT: Multiply-adds of large products in float32.
        FACTOR: Multiply-adds of factorizations in float64.
        STEP: Columns that are rounded, each for a batch of rows, whatever their number.
        COLUMN: Weights that are rounded one column after the other.
        TRIAL: Weights that are compared with one candidate for their scale.
        WALK: Entries of float32 that are read and written by an operation on each.
        RUN: Multiply-adds of weights in the target runtime.
        LOAD: Bytes that the target runtime loads.
        WRITE: Bytes that go to a file.
        CHOICE: Rows times options that an allocation looks at, once for each price.
        SECOND: Seconds that do not depend on the machine.
    """

    SWEEP = "sweep"
    COARSE = "coarse sweep"
    PRODUCT = "product"
    FACTOR = "factor"
    STEP = "step"
    COLUMN = "column"
    TRIAL = "trial"
    WALK = "walk"
    RUN = "run"
    LOAD = "load"
    WRITE = "write"
    CHOICE = "choice"
    SECOND = "second"


Rates = Mapping[Kind, float]  # amounts a second

# Of two cores of a server, as measured by ``mpqc plan``.
PLAIN_RATES: Rates = MappingProxyType(
    {
        Kind.SWEEP: 40e9,
        Kind.COARSE: 45e9,
        Kind.PRODUCT: 60e9,
        Kind.FACTOR: 6e9,
        Kind.STEP: 50e3,
        Kind.COLUMN: 18e6,
        Kind.TRIAL: 600e6,
        Kind.WALK: 1.9e9,
        Kind.RUN: 30e9,
        Kind.LOAD: 1e9,
        Kind.WRITE: 300e6,
        Kind.CHOICE: 40e6,
        Kind.SECOND: 1.0,
    }
)


@dataclass(frozen=True)
class Work:
    """Some work, and the room that it takes.

    Attributes:
        amounts: How much there is of each kind.
        held: Bytes of memory that it takes meanwhile, above what stands there before.
        left: Bytes of memory that stay taken until the end of the run.
        kept: Bytes that stay on disk, in the cache.
        scratch: Bytes on disk meanwhile.
    """

    amounts: Mapping[Kind, float] = field(default_factory=dict)
    held: float = 0.0
    left: float = 0.0
    kept: float = 0.0
    scratch: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Returns both, one after the other."""
        kinds = {**self.amounts, **other.amounts}
        return Work(
            {
                kind: self.amounts.get(kind, 0.0) + other.amounts.get(kind, 0.0)
                for kind in kinds
            },
            max(self.held, self.left + other.held),
            self.left + other.left,
            self.kept + other.kept,
            max(self.scratch, other.scratch),
        )

    def times(self, count: float) -> Work:
        """Returns the same amounts so many times, in the same room."""
        amounts = {kind: amount * count for kind, amount in self.amounts.items()}
        return Work(amounts, self.held, self.left, self.kept, self.scratch)

    def seconds(self, rates: Rates = PLAIN_RATES) -> float:
        """Returns the seconds that it takes at these rates."""
        return sum(amount / rates[kind] for kind, amount in self.amounts.items())
