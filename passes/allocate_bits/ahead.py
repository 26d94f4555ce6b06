"""What can be told of an allocation before there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...ir import Capabilities, Option, Unit
from ...ir.analysis.offered import mixed_options
from ..engine.emission.cost import class_bytes, resident_bytes
from ..engine.numerics.frontier import frontier
from ..engine.numerics.knapsack import Item
from ..engine.pipeline.outlook import Outlook
from .ledger import Ledger

Offered = Mapping[Unit, Sequence[Option]]


def least_bytes(unit: Unit, options: Sequence[Option], table: Capabilities) -> int:
    """Returns the bytes of a unit that is stored as small as can be."""
    return min(_sizes(unit, options, table))


def look_ahead(
    offered: Offered, items: Sequence[Item], ledger: Ledger, table: Capabilities
) -> Outlook:
    """Returns the feasible range, and the curve of the least loss if losses are known.

    Args:
        offered: The units with their options.
        items: How units look to the knapsack; empty while losses are unknown.
        ledger: What is fixed, and what the budget leaves.
        table: What the target can do.
    """
    sizes = [_sizes(unit, options, table) for unit, options in offered.items()]
    fixed, weights = ledger.fixed_bytes, ledger.weights
    asked = ledger.budget if ledger.budget is not None else 0.0
    resident = sum(_resident(unit, opts, asked, table) for unit, opts in offered.items())
    curve = ((ledger.bits(fixed + size), loss) for size, loss in frontier(items))
    return Outlook(
        ledger.bits(fixed + sum(map(min, sizes))),
        ledger.bits(fixed + sum(map(max, sizes))),
        (ledger.settled_bytes + ledger.float_bytes + resident) * 8 / weights,
        tuple(curve),
    )


def _sizes(unit: Unit, options: Sequence[Option], table: Capabilities) -> list[int]:
    rows, columns = unit.shape
    extra = class_bytes(unit, options, table)
    return [
        option.row_bytes(columns) * rows + more
        for option, more in zip(options, extra, strict=True)
    ]


def _resident(
    unit: Unit, options: Sequence[Option], bits: float, table: Capabilities
) -> float:
    """Returns about how many bytes a unit takes in memory with so many stored bits."""
    rows, columns = unit.shape
    parts = mixed_options(options, columns, bits)
    mixed = [(option, round(rows * share)) for option, share in parts if share > 0]
    return resident_bytes(unit, mixed, table, reordered=False)
