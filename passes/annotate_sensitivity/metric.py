"""The interface of metrics: a request, and a judgement of each unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import onnx_ir as ir

from ...ir import Option, Unit
from ..engine.execution.parallel import for_each
from ..engine.pipeline.base import PassContext

T = TypeVar("T", covariant=True)
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


def judge_each(
    asked: Asked[object], of: Callable[[Unit], Judgement], what: str
) -> dict[str, Judgement]:
    """Judges units that do not depend on one another, on all cores.

    Args:
        asked: The request to the metric.
        of: Judges one unit.
        what: The text that the user sees meanwhile.
    """
    context = asked.context
    found = for_each(of, asked.units, context.progress, what, device=context.device)
    return {unit.name: one for unit, one in zip(asked.units, found, strict=True)}
