"""Measured divergence of one unit at a time: the truth that ``fisher`` predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...ir import Option, Unit
from ...ir.analysis.offered import expands_to_floats
from ..engine.execution.executor import BlockRunner, Weights, weight_of
from ..engine.execution.samples import Samples
from ..engine.numerics.gptq import as_half, round_rows
from ..engine.pipeline.base import PassContext
from ..engine.pipeline.chosen_options import at_least
from ..engine.statistics.quadratic import Quadratic
from . import fisher
from .loss_change import LossChange
from .metric import Asked, Judgement
from .running import block_runner


@dataclass(frozen=True)
class Settings:
    """Options of ``kl``.

    Attributes:
        samples: Samples to measure on; 0 takes all.
        units: Measure only this many units, evenly spread; 0 measures all.
    """

    samples: int = 2
    units: int = 0

    def __post_init__(self) -> None:
        at_least(0, samples=self.samples, units=self.units)


def judge(asked: Asked[Settings]) -> dict[str, Judgement]:
    """Measures the totals of units; the shares of their rows are predicted.

    Units that ``units`` leaves out keep their prediction.
    """
    found = fisher.losses(asked)
    for name, totals in _totals(asked).items():
        found[name] *= totals / np.maximum(found[name].sum(axis=0), 1e-30)
    return {
        unit.name: Judgement.of_losses(found[unit.name], unit.shape[1]) for unit in asked.units
    }


def _totals(asked: Asked[Settings]) -> dict[str, np.ndarray]:
    """Returns, for the units that are measured, the divergence under each of their options.

    Each unit is rounded with GPTQ and measured alone, all others exact, on held-in samples.

    Raises:
        UsageError: An operator of the model does not run in torch.
    """
    context = asked.context
    change = LossChange.of(asked)
    runner = block_runner(asked, [change.note.output])
    samples = Samples.of(context, change.samples.first(asked.settings.samples))
    for sample in samples:
        runner.run(sample)
    units = _spread(asked.units, asked.settings.units)
    totals = {}
    for unit in context.progress.track(units, len(units), "measuring units"):
        found = []
        for option in asked.options[unit.name]:
            weights = {unit.weight: weight_of(unit, _rounded(unit, option, context))}
            found.append(_mean_change(runner, change, samples, weights))
        totals[unit.name] = np.array(found)
    return totals


def _spread(units: Sequence[Unit], count: int) -> list[Unit]:
    """Returns ``count`` units evenly spread over the model; all when ``count`` is 0."""
    if not count or count >= len(units):
        return list(units)
    return [units[round(at)] for at in np.linspace(0, len(units) - 1, count)]


def _rounded(unit: Unit, option: Option, context: PassContext) -> np.ndarray:
    weight = torch.from_numpy(unit.matrix()).to(context.device)
    if option.is_half:
        return as_half(weight).cpu().numpy()
    factor = Quadratic.of(unit, context.arrays, context.device).factor()
    table = context.capabilities
    rounded = round_rows(
        weight,
        option.bits,
        option.group,
        factor,
        in_floats=expands_to_floats(unit, table),
        signed=table.signed_scales,
        float8=option.float8,
    )
    return rounded.dequantize(option.group).cpu().numpy()


def _mean_change(
    runner: BlockRunner, change: LossChange, samples: Samples, weights: Weights
) -> float:
    output = change.note.output
    found = [
        change(sample, sample[output], runner.branch(sample, weights)[output])
        for sample in samples
    ]
    return float(np.mean(found))
