"""The metrics that exist: one line each, one module each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..engine.pipeline.chosen_options import NoOptions
from . import (
    activation_norm,
    cca,
    fisher,
    measured,
    pruning,
    taylor,
    trace,
    weight_error,
)
from .metric import Asked, Judgement


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        judge: Judges each unit; returns the judgements by the units' names.
        settings: The dataclass of its own options.
        by_block: Whether it judges whole blocks.
    """

    judge: Callable[[Asked[Any]], dict[str, Judgement]]
    settings: type[Any] = NoOptions
    by_block: bool = False


METRICS: Mapping[str, Metric] = {
    "fisher": Metric(fisher.judge, fisher.Settings),
    "kl": Metric(measured.judge, measured.Settings),
    "trace": Metric(trace.judge),
    "activation-norm": Metric(activation_norm.judge),
    "weight-error": Metric(weight_error.judge),
    "cca": Metric(cca.judge, cca.Settings, by_block=True),
    "pruning": Metric(pruning.judge, pruning.Settings, by_block=True),
    "taylor": Metric(taylor.judge, taylor.Settings, by_block=True),
}
SETTINGS = {name: metric.settings for name, metric in METRICS.items()}
