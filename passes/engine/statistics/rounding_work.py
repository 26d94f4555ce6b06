"""What rounding a unit takes: the formulas behind every pass that rounds.

For rows x columns = R x K, with groups of G columns. A *step* rounds one column of a batch of
rows, whatever their number; an *entry* is one weight of it.

    factor       K^3                                       the inverse of the Hessian
    scales       R K candidates                            each with a pass over its group
    GPTQ         K steps a batch, R K entries, R K^2 / 2   products between columns
    refinement   the same, and 3 R K^2 of products, R (K/G)^3 of equations
    coupling     R^3 of a factor, R^2 K of products        between rows
    loss         R K^2 / 2                                 half of the Hessian, in blocks
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from ....ir import Option, Unit
from ..execution.extent import FLOAT_BYTES
from ..execution.memory import available_memory
from ..numerics.gptq import is_lossless, working_bytes
from ..numerics.row_errors import COLUMNS_AT_ONCE
from ..pipeline.work import Kind, Work
from .moments import MOST_COUPLED_ROWS

_CANDIDATES = {2: 24, 3: 16, 4: 8, 5: 4}  # scales tried by width of a code; 1 beyond
_BATCH = 2048  # rows that are rounded at a time
_COUPLED_BATCHES = 16  # ... and into how many parts rows are cut that make up for each other
_LEAST_COUPLED = 32
_SHARE = 0.6  # of free memory that is taken at a time


def _candidates(option: Option) -> int:
    return _CANDIDATES.get(option.bits, 1)


def factor_work(columns: int) -> Work:
    """Returns the work of factorizing a Hessian."""
    return Work({Kind.FACTOR: float(columns) ** 3})


def option_work(
    shape: tuple[int, int],
    option: Option,
    *,
    in_floats: bool,
    refinements: int = 0,
    batches: float | None = None,
) -> Work:
    """Returns the work of rounding rows x columns, once the Hessian is factorized.

    Args:
        shape: Rows and columns.
        option: What they are rounded to.
        in_floats: Whether what reads the weight computes in floats.
        refinements: Rounds of scale refit plus coordinate descent.
        batches: Into how many batches the rows are cut.
    """
    rows, columns = shape
    entries = float(rows * columns)
    if option.is_half:
        return Work({Kind.WALK: entries})
    tried = Work({Kind.TRIAL: entries * _candidates(option)})
    if is_lossless(option.bits, in_floats=in_floats):
        return tried + Work({Kind.WALK: 2 * entries})
    batches = batches if batches is not None else -(-rows // _BATCH)
    groups = -(-columns // option.group)
    once = Work(
        {
            Kind.STEP: columns * batches,
            Kind.COLUMN: entries,
            Kind.PRODUCT: entries * columns / 2,
        }
    )
    refit = Work(
        {
            Kind.PRODUCT: 3 * entries * columns,
            Kind.WALK: entries * groups,
            Kind.FACTOR: rows * groups**3 / 3,
        }
    )
    return tried + once + (once + refit).times(refinements)


def unit_work(
    unit: Unit,
    mixed: Sequence[tuple[Option, float]],
    refinements: int | None,
    in_floats: bool,
    *,
    coupled: bool,
) -> Work:
    """Returns the work of rounding a unit for good.

    Args:
        unit: The unit.
        mixed: Options, each with the share of the rows that have it.
        refinements: Rounds of scale refit plus coordinate descent; None rounds to nearest.
        in_floats: Whether what reads the weight computes in floats.
        coupled: Whether rows make up for each other's errors, where they may.
    """
    rows, columns = unit.shape
    total = factor_work(columns) + loss_work(unit.shape).times(len(unit.uses))
    coupled = coupled and may_couple(unit)
    if coupled:
        total += _coupling_work(unit.shape)
    for option, share in mixed:
        shape = round(rows * share), columns
        batches = _coupled_batches(rows) * share if coupled else None
        if refinements is None:
            total += Work({Kind.TRIAL: float(shape[0] * columns * _candidates(option))})
        elif shape[0]:
            total += option_work(
                shape, option, in_floats=in_floats, refinements=refinements, batches=batches
            )
    return total


def may_couple(unit: Unit) -> bool:
    """Tells whether ``calibrate{coupled=true}`` gathers how rows of a unit act together."""
    alone = len(unit.uses) == 1 and unit.uses[0].kind == "product"
    return alone and unit.shape[0] <= MOST_COUPLED_ROWS


def _coupling_work(shape: tuple[int, int]) -> Work:
    """Returns what it takes on top that rows make up for each other's errors."""
    rows, columns = map(float, shape)
    return Work(
        {
            Kind.FACTOR: rows**3 / 3,
            Kind.PRODUCT: rows * columns * (1.5 * rows + columns),
        }
    )


def _coupled_batches(rows: int) -> float:
    """Returns into how many batches coupled rows are cut."""
    return min(_COUPLED_BATCHES, -(-rows // _LEAST_COUPLED)) + 1.0


def loss_work(shape: tuple[int, int]) -> Work:
    """Returns the work of evaluating ``d^T H d`` of every row."""
    rows, columns = shape
    return Work({Kind.PRODUCT: float(rows * columns) * (columns + COLUMNS_AT_ONCE) / 2})


def held_together(units: Sequence[Unit], *, coupled: bool = False) -> float:
    """Returns the most memory that rounding takes on all cores at a time, in bytes."""

    def need(unit: Unit) -> float:
        rows, columns = unit.shape
        both = coupled and may_couple(unit)
        read = FLOAT_BYTES * (2 * columns**2 + (rows**2 if both else 0))
        return working_bytes(rows, columns, coupled=both) + read

    return most_at_once(map(need, units))


def most_at_once(needs: Iterable[float]) -> float:
    """Returns what calls on all cores take together, of what is free or one by one."""
    largest = sorted(needs, reverse=True)[: os.cpu_count() or 1]
    free = available_memory()
    if not largest or free is None:
        return sum(largest)
    return max(largest[0], min(sum(largest), _SHARE * free))
