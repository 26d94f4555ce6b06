"""The interface of metrics: a request, and a judgement of each unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import onnx_ir as ir

from ...ir import Option, Unit
from ..engine.execution.by_unit import each_unit
from ..engine.pipeline.base import PassContext

T = TypeVar("T", covariant=True)
R = TypeVar("R")
# Judges a unit under the options that it is offered. A function of a module, or made of one:
# other processes may call it.
OfUnit = Callable[[Unit, Sequence[Option], PassContext], R]
Offered = Mapping[Unit, Sequence[Option]]


@dataclass(frozen=True)
class Asked(Generic[T]):
    """A request to a metric.

    Attributes:
        model: The graph, calibrated.
        units: The units to judge.
        options: By unit: the options to judge it under.
        metric: Its name, for messages.
        settings: The metric's own options.
        context: The context of the pass.
    """

    model: ir.Model
    units: Sequence[Unit]
    options: Mapping[str, Sequence[Option]]
    metric: str
    settings: T
    context: PassContext


@dataclass(frozen=True)
class Keeping:
    """The gain of a unit from input channels that stay in 16 bits.

    Attributes:
        columns: Int32, the channels most worth it first.
        losses: By the number of channels that are kept: what rows then lose, as ``loss`` of
            a judgement.
    """

    columns: np.ndarray
    losses: Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Judgement:
    """A metric's judgement of a unit.

    Attributes:
        loss: What every row loses under every option, rows x options, float32. Its unit is the
            metric's own; only ratios between units, rows and options matter to
            ``allocate-bits``. ``fisher`` and ``kl`` give nats per token.
        score: One number for the unit: the larger, the more bits it should get.
        block: The block that the score belongs to; -1 when it is the unit's own.
        keeping: What keeping input channels would change; None where none can be kept.
    """

    loss: np.ndarray
    score: float
    block: int = -1
    keeping: Keeping | None = None

    @classmethod
    def of_losses(
        cls, loss: np.ndarray, columns: int, keeping: Keeping | None = None
    ) -> Judgement:
        """Scores a unit by what a weight of it loses under the smallest option, on average.

        Args:
            loss: Rows x options.
            columns: Weights in a row.
            keeping: What keeping input channels would change.
        """
        mean = float(loss[:, 0].mean(dtype=np.float64)) / columns
        return cls(loss, mean, keeping=keeping)


@dataclass(frozen=True)
class _UnderOptions(Generic[R]):
    """Judges units under what each is offered."""

    of: OfUnit[R]
    options: Mapping[str, Sequence[Option]]

    def __call__(self, unit: Unit, context: PassContext) -> R:
        return self.of(unit, self.options[unit.name], context)


def judge_each(
    asked: Asked[object],
    of: OfUnit[R],
    what: str,
    *,
    need: Callable[[Unit], int] | None = None,
    cost: Callable[[Unit], float] | None = None,
) -> dict[str, R]:
    """Judges units that do not depend on one another, wherever there are cores for it.

    Args:
        asked: The request to the metric.
        of: Judges one unit.
        what: The text that the user sees meanwhile.
        need: Estimates the bytes that judging a unit takes.
        cost: Estimates what judging a unit takes, in any unit.
    """
    work = _UnderOptions(of, {unit.name: asked.options[unit.name] for unit in asked.units})
    units, model, context = asked.units, asked.model, asked.context
    found = each_unit(work, units, model, context, what, need=need, cost=cost)
    return {unit.name: one for unit, one in zip(units, found, strict=True)}
