"""How long the nodes take that lowering puts in the place of a unit's products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ....ir import Capabilities, Option, Unit
from ....ir.analysis.offered import expands_to_floats
from ....ir.costs import CONCAT, FLOAT, ORDER, SELECT, CostTable


@dataclass(frozen=True)
class UnitTimes:
    """Microseconds of a unit's products in one workload.

    A lookup counts as nothing, and so does what takes floats, as it stays as it was. Of these
    convolutions count that may multiply integers: as products of so many places.

    Attributes:
        original: As the products were.
        rows: One row, for each option.
        classes: A row class, for each option.
        mixing: Joining the classes.
        ordering: Restoring the order of the rows.
        kept: Input channels that stay in 16 bits, however many.
        kept_column: One of them.
    """

    original: float
    rows: np.ndarray
    classes: np.ndarray
    mixing: float
    ordering: float
    kept: float
    kept_column: float

    def of(self, rows: Iterable[tuple[int, int]], *, reordered: bool, kept: int) -> float:
        """Returns the time of a choice.

        Args:
            rows: Places of options with the number of rows that have them.
            reordered: Whether the order of the rows has to be restored.
            kept: Input channels that stay in 16 bits.
        """
        used = list(rows)
        total = sum(float(self.classes[at] + self.rows[at] * count) for at, count in used)
        if len(used) > 1:
            total += self.mixing
        if reordered:
            total += self.ordering
        return total + (self.kept + self.kept_column * kept if kept else 0.0)

    def quickest(self, unit: Unit) -> float:
        """Returns the least time of any option for all rows."""
        return float((self.classes + self.rows * unit.shape[0]).min())


@dataclass(frozen=True)
class Residence:
    """Whether the weights of a model come from memory rather than from the cache in each run.

    Attributes:
        original: Of the model in floats.
        result: Of the model in codes.
    """

    original: bool
    result: bool


def is_timed_convolution(unit: Unit, options: Sequence[Option]) -> bool:
    """Tells whether a convolution is offered a kernel of integers."""
    return unit.uses[0].kind == "conv" and any(option.integer for option in options)


def unit_times(
    unit: Unit,
    options: Sequence[Option],
    table: Capabilities,
    costs: CostTable,
    tokens: float,
    cold: Residence,
) -> UnitTimes:
    """Returns what a unit takes when its products have so many tokens.

    Args:
        unit: The unit.
        options: What it can be stored with.
        table: What the target can do.
        costs: What operations take.
        tokens: Rows of activations in each product; of a convolution, its places.
        cold: Where weights come from.
    """
    products, operations = 0, [FLOAT] * len(options)
    if is_timed_convolution(unit, options):
        products = len(unit.uses)
        operations = [costs.kernel(one) if one.integer else FLOAT for one in options]
    elif not expands_to_floats(unit, table):
        products = sum(use.kind == "product" for use in unit.uses)
        operations = [costs.kernel(one) for one in options]
    rows, columns = unit.shape
    kernels = [costs.parts(one, tokens, cold=cold.result) for one in operations]
    if unit.uses[0].kind == "conv":  # what they read is codes already
        kernels = [
            replace(parts, column=0.0) if option.integer else parts
            for parts, option in zip(kernels, options, strict=True)
        ]
    slim = costs.parts(FLOAT, tokens, cold=cold.result)
    return UnitTimes(
        original=products * costs.time(FLOAT, tokens, rows, columns, cold=cold.original),
        rows=products * np.array([one.each_row(columns) for one in kernels]),
        classes=products * np.array([one.shared(columns) for one in kernels]),
        mixing=products * costs.moving(CONCAT, tokens, rows),
        ordering=products * costs.moving(ORDER, tokens, rows),
        kept=products * (costs.moving(SELECT, tokens, 0) + slim.call + slim.row * rows)
        + products * costs.moving(CONCAT, tokens, rows),  # the sum takes what a copy does
        kept_column=products * (slim.column + slim.weight * rows),
    )
