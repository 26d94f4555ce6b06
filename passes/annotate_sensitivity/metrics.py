"""The metrics that exist: one line each, one module each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..engine.pipeline.chosen_options import NoOptions
from ..engine.pipeline.work import Work
from . import (
    activation_norm,
    cca,
    fisher,
    judging,
    measured,
    pruning,
    taylor,
    trace,
    weight_error,
)
from .metric import Asked, Judgement, Offered


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        judge: Judges each unit; returns the judgements by the units' names.
        work: What that takes, given the units with their options.
        settings: The dataclass of its own options.
        by_block: Whether it judges whole blocks.
    """

    judge: Callable[[Asked[Any]], dict[str, Judgement]]
    work: Callable[[Offered, Asked[Any]], Work]
    settings: type[Any] = NoOptions
    by_block: bool = False


METRICS: Mapping[str, Metric] = {
    "fisher": Metric(fisher.judge, judging.rounding, fisher.Settings),
    "kl": Metric(measured.judge, judging.measuring, measured.Settings),
    "trace": Metric(trace.judge, judging.rounding_to_nearest),
    "activation-norm": Metric(activation_norm.judge, judging.rounding_to_nearest),
    "weight-error": Metric(weight_error.judge, judging.rounding_to_nearest),
    "cca": Metric(cca.judge, judging.forward, cca.Settings, by_block=True),
    "pruning": Metric(pruning.judge, judging.disturbing, pruning.Settings, by_block=True),
    "taylor": Metric(taylor.judge, judging.disturbing, taylor.Settings, by_block=True),
}
SETTINGS = {name: metric.settings for name, metric in METRICS.items()}
