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

# name -> module with a function `losses`, imported only when asked for.
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


class Losses(Protocol):
    """A metric: what every row loses under every option."""

    def __call__(self, asked: Asked) -> dict[str, np.ndarray]:
        """Returns for each unit an array of rows x options, float32.

        The unit of a loss is the metric's own; only the ratios between units, rows and
        options matter to ``allocate-bits``. ``fisher`` and ``kl`` give nats per token.
        """
        ...


def check_metric(name: str) -> None:
    """Refuses a metric that does not exist.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in METRICS:
        hint = did_you_mean(name, METRICS)
        raise UsageError(f"annotate-sensitivity has no metric {name!r}", hint=hint)


def metric(name: str) -> Losses:
    """Returns the metric called ``name``."""
    check_metric(name)
    found: Losses = import_module(f".{METRICS[name]}", __package__).losses
    return found
