"""The choices of units, and the decisions between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...ir import ArrayStore, Option, Score, SharedOrder, Unit, UsageError
from ...ir.unit_arrays import UnitArrays
from ..engine.numerics.knapsack import Choice, Item, Toll


@dataclass(frozen=True)
class Keeping:
    """What a unit pays for keeping input channels in 16 bits, in units of loss.

    Attributes:
        any_: However many.
        column: For each.
    """

    any_: float = 0.0
    column: float = 0.0

    def of(self, columns: int) -> float:
        """Returns what keeping ``columns`` channels costs."""
        return self.any_ + self.column * columns if columns else 0.0


@dataclass(frozen=True)
class Candidate:
    """A unit that can be stored with several options.

    Attributes:
        unit: The unit.
        options: What it can be stored with, by growing size.
        item: How it looks to the knapsack.
        score: How sensitive a metric found it.
        kept: How many input channels stay in 16 bits, beside its options.
        keeping: What that costs beside their bytes.
    """

    unit: Unit
    options: tuple[Option, ...]
    item: Item
    score: Score | None
    kept: int = 0
    keeping: Keeping = Keeping()

    def paying(self, toll: Toll, keeping: Keeping) -> Candidate:
        """Returns the same unit, which pays for more than its bytes."""
        return replace(self, item=replace(self.item, toll=toll), keeping=keeping)

    def need_score(self) -> Score:
        """Returns the score.

        Raises:
            UsageError: The unit has none.
        """
        if self.score is None:
            raise UsageError(
                f"unit {self.unit.name!r} has no #score", hint="run annotate-sensitivity again"
            )
        return self.score

    def outlier_columns(self, arrays: ArrayStore) -> np.ndarray:
        """Returns which input channels stay in 16 bits, int32, ascending."""
        if not self.kept:
            return np.zeros(0, dtype=np.int32)
        return np.sort(UnitArrays(self.unit.name, arrays).get("keep", "columns")[: self.kept])

    def place(self, bits: int) -> int:
        """Returns the place of the option with ``bits`` bits, of several the smallest.

        Where there is none, the next wider stands in, and beyond the widest the widest.
        """
        widths = [option.bits for option in self.options]
        width = min((one for one in widths if one >= bits), default=max(widths))
        return widths.index(width)


@dataclass(frozen=True)
class Decision:
    """The allocation of one or more units that were decided together.

    Attributes:
        units: The units.
        choices: What each of them got.
        places: For every row the place of its option, by which rows are sorted when stored.
        group: Why they were decided together: their order of rows is to be folded.
    """

    units: tuple[Unit, ...]
    choices: tuple[Choice, ...]
    places: np.ndarray
    group: SharedOrder | None = None

    @classmethod
    def whole(cls, candidate: Candidate, place: int) -> Decision:
        """Stores all rows of a unit with the option at ``place``."""
        item = candidate.item
        rows = item.loss.shape[0]
        loss = float(item.loss[:, place].sum(dtype=np.float64))
        places = np.full(rows, place)
        choice = Choice(places, item.bytes_of(places), loss)
        return cls((candidate.unit,), (choice,), places)


def total_bytes(decisions: Sequence[Decision]) -> int:
    """Returns the stored bytes of all units, including the cost of mixed options."""
    return sum(choice.bytes for one in decisions for choice in one.choices)


def total_loss(decisions: Sequence[Decision]) -> float:
    """Returns the predicted loss of all units."""
    return sum(choice.loss for one in decisions for choice in one.choices)
