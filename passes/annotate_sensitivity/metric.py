"""What a metric is, and which ones exist: one line each, one module each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir

from ...ir import Option, Unit
from ..engine.execution.parallel import for_each
from ..engine.pipeline.base import PassContext

if TYPE_CHECKING:
    from .annotate_sensitivity import AnnotateSensitivity


@dataclass(frozen=True)
class Metric:
    """Where a metric stands, and which options of the pass only some metrics look at.

    Attributes:
        module: The module with its function ``judge``, imported only when asked for.
        takes: The options that it looks at.
        by_block: Whether it judges whole blocks.
    """

    module: str
    takes: frozenset[str] = frozenset()
    by_block: bool = False


METRICS: Mapping[str, Metric] = {
    "fisher": Metric("fisher", frozenset({"keep"})),
    "kl": Metric("measured", frozenset({"samples", "units"})),
    "trace": Metric("trace"),
    "activation-norm": Metric("activation_norm"),
    "weight-error": Metric("weight_error"),
    "cca": Metric("cca", frozenset({"samples", "variant", "window"}), by_block=True),
    "pruning": Metric("pruning", frozenset({"samples", "sparsity", "labels"}), by_block=True),
    "taylor": Metric(
        "taylor", frozenset({"samples", "form", "scale", "seeds", "labels"}), by_block=True
    ),
}


@dataclass(frozen=True)
class Asked:
    """What a metric is asked.

    Attributes:
        model: The graph, calibrated.
        units: The units to judge.
        options: By unit: the options to judge it under.
        settings: The pass, whose fields are what users can set.
        context: What the pass was given.
    """

    model: ir.Model
    units: Sequence[Unit]
    options: Mapping[str, Sequence[Option]]
    settings: AnnotateSensitivity
    context: PassContext


@dataclass(frozen=True)
class Keeping:
    """What a unit gains when input channels stay in 16 bits.

    Attributes:
        columns: Int32, the channels most worth it first.
        losses: By the number of channels that are kept: what rows then lose, as ``loss`` of
            a judgement.
    """

    columns: np.ndarray
    losses: Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Judgement:
    """What a metric thinks of a unit.

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


class Judge(Protocol):
    """A metric."""

    def __call__(self, asked: Asked) -> dict[str, Judgement]:
        """Judges each unit, by name."""
        ...


def judge(asked: Asked) -> dict[str, Judgement]:
    """Judges every unit by the metric that the settings name."""
    module = METRICS[asked.settings.metric].module
    found: Judge = import_module(f".{module}", __package__).judge
    return found(asked)


def judge_each(
    asked: Asked, of: Callable[[Unit], Judgement], what: str
) -> dict[str, Judgement]:
    """Judges units that do not depend on one another, on all cores.

    Args:
        asked: What the metric was asked.
        of: Judges one unit.
        what: What the user is told meanwhile.
    """
    found = for_each(of, asked.units, asked.context.progress, what)
    return {unit.name: one for unit, one in zip(asked.units, found, strict=True)}
