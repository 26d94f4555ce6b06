"""What a metric is, and which ones exist: one line each, one module each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir

from ...ir import Option, Unit, UsageError
from ...ir.text_form import did_you_mean
from ..machinery.base import PassContext

if TYPE_CHECKING:
    from ..annotate_sensitivity import AnnotateSensitivity

# name -> module with a function `judge`, imported only when asked for.
METRICS: dict[str, str] = {
    "fisher": "fisher",
    "kl": "measured",
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
class Judgement:
    """What a metric thinks of a unit.

    Attributes:
        loss: What every row loses under every option, rows x options, float32. Its unit is the
            metric's own; only ratios between units, rows and options matter to
            ``allocate-bits``. ``fisher`` and ``kl`` give nats per token.
        score: One number for the unit: the larger, the more bits it should get.
        block: The block that the score belongs to; -1 when it is the unit's own.
    """

    loss: np.ndarray
    score: float
    block: int = -1

    @classmethod
    def of_losses(cls, loss: np.ndarray, columns: int) -> Judgement:
        """Scores a unit by what a weight of it loses under the smallest option, on average.

        Args:
            loss: Rows x options.
            columns: Weights in a row.
        """
        mean = float(loss[:, 0].mean(dtype=np.float64)) / columns
        return cls(loss, mean)


class Judge(Protocol):
    """A metric."""

    def __call__(self, asked: Asked) -> dict[str, Judgement]:
        """Judges each unit, by name."""
        ...


def check_metric(name: str) -> None:
    """Refuses a metric that does not exist.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in METRICS:
        hint = did_you_mean(name, METRICS)
        raise UsageError(f"annotate-sensitivity has no metric {name!r}", hint=hint)


def metric(name: str) -> Judge:
    """Returns the metric called ``name``."""
    check_metric(name)
    found: Judge = import_module(f".{METRICS[name]}", __package__).judge
    return found
