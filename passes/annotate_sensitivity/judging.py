"""What judging units takes: one formula for each way to do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import BlockId, Option, Unit, note_of
from ...ir.analysis.offered import expands_to_floats
from ..engine.execution.extent import FLOAT_BYTES, Extent
from ..engine.pipeline.work import Kind, Work
from ..engine.statistics.rounding_work import (
    factor_work,
    held_together,
    loss_work,
    most_at_once,
    option_work,
)
from .keeping import can_keep, tried_with_kept
from .metric import Asked, Offered

_NEAREST_COPIES = 6  # of a weight, while it is rounded to nearest


def rounding(offered: Offered, asked: Asked[Any]) -> Work:
    """Every unit, with GPTQ, under every option; some again for each count that is kept."""
    total = Work()
    for unit, options in offered.items():
        total += rounding_one(unit, options, asked)
    held, tables = held_together(list(offered)), 1 + len(_keep(asked))
    return Work(total.amounts, held=held, kept=_losses(offered, tables))


def rounding_one(unit: Unit, options: Sequence[Option], asked: Asked[Any]) -> Work:
    """One unit of these."""
    total, counts = _trying(unit, options, asked), len(_keep(asked))
    if counts and can_keep(unit, asked.context.capabilities):
        again = [options[at] for at in tried_with_kept(options)[0]]
        total += factor_work(unit.shape[1])
        total += _trying(unit, again, asked).times(counts)
    return total


def _trying(unit: Unit, options: Sequence[Option], asked: Asked[Any]) -> Work:
    in_floats = expands_to_floats(unit, asked.context.capabilities)
    total = factor_work(unit.shape[1])
    for option in options:
        total += option_work(unit.shape, option, in_floats=in_floats)
        total += loss_work(unit.shape).times(len(unit.uses))
    return total


def _keep(asked: Asked[Any]) -> Sequence[int]:
    return getattr(asked.settings, "keep", ())


def rounding_to_nearest(offered: Offered, asked: Asked[Any]) -> Work:
    """Every unit, to nearest, under every option."""
    del asked
    total = Work()
    for unit, options in offered.items():
        for option in options:
            total += option_work(unit.shape, option, in_floats=False, batches=0)
    held = most_at_once(_NEAREST_COPIES * FLOAT_BYTES * unit.size for unit in offered)
    amounts = {kind: total.amounts.get(kind, 0.0) for kind in (Kind.TRIAL, Kind.WALK)}
    return Work(amounts, held=held, kept=_losses(offered, 1))


def measuring(offered: Offered, asked: Asked[Any]) -> Work:
    """Prediction, and one run from each unit to the end under every option."""
    units = list(offered)
    chosen = asked.settings.units or len(units)
    options = sum(map(len, offered.values())) / max(len(units), 1)
    runs = asked.settings.samples * chosen * options / 2  # half of the blocks, on average
    return rounding(offered, asked) + _forward(asked, runs) + rounding(offered, asked)


def disturbing(offered: Offered, asked: Asked[Any]) -> Work:
    """One run from each block to the end."""
    runs = asked.settings.samples * len(_blocks(offered)) / 2
    return _forward(asked, runs) + rounding_to_nearest(offered, asked)


def forward(offered: Offered, asked: Asked[Any]) -> Work:
    """One run over the samples."""
    assert asked.context.calibration is not None
    count = len(asked.context.calibration.first(getattr(asked.settings, "samples", 0)))
    return _forward(asked, count) + rounding_to_nearest(offered, asked)


def _forward(asked: Asked[Any], runs: float) -> Work:
    extent = Extent.of(asked.model, asked.context.calibration)
    return Work({Kind.SWEEP: runs * extent.multiply_adds(asked.units)})


def _blocks(offered: Offered) -> set[int]:
    notes = (note_of(unit.anchor, BlockId) for unit in offered)
    return {note.index for note in notes if note is not None}


def _losses(offered: Offered, tables: int) -> float:
    """Returns the bytes of the losses of all rows."""

    def of(unit: Unit, options: int) -> int:
        return FLOAT_BYTES * unit.shape[0] * options * tables

    return float(sum(of(unit, len(options)) for unit, options in offered.items()))
