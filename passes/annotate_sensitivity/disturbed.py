"""By how much the loss grows when the weights of one layer at a time are changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir import Unit
from ..engine.execution.executor import weight_of
from ..engine.execution.samples import Samples
from ..engine.pipeline.chosen_options import at_least, one_of
from .layers import Layer
from .loss_change import LossChange
from .metric import Asked
from .running import block_runner

Disturb = Callable[[Unit], np.ndarray]


@dataclass(frozen=True)
class LossSettings:
    """Options of metrics that look at the loss.

    Attributes:
        samples: Samples to take the loss on; 0 takes all.
        labels: ``model`` (labels drawn by the model itself, so that the loss grows by the
            divergence) or ``text`` (the next token).
    """

    samples: int = 4
    labels: str = "model"

    def __post_init__(self) -> None:
        one_of(("model", "text"), labels=self.labels)
        at_least(0, samples=self.samples)


def loss_changes(
    asked: Asked[LossSettings], layers: Sequence[Layer], disturbances: Sequence[Disturb]
) -> list[float]:
    """Returns the mean growth of the loss for every layer; the baseline is the exact model.

    One sample is in memory at a time, with what crosses its block boundaries.

    Args:
        asked: The request to the metric.
        layers: The layers to change, one at a time.
        disturbances: Each makes other weights (rows x columns) for a unit; the results of
            several are averaged.
    """
    metric, context = asked.metric, asked.context
    change = LossChange.of(asked, asked.settings.labels)
    runner = block_runner(asked, [change.note.output])
    samples = Samples.of(context, change.samples.first(asked.settings.samples))
    growth = np.zeros((len(samples), len(layers)))
    steps = context.progress.track(samples, len(samples), f"trying {metric}")
    for at, sample in enumerate(steps):
        runner.run(sample)
        before = sample[change.note.output]
        for place, layer in enumerate(layers):
            for disturb in disturbances:
                weights = {u.weight: weight_of(u, disturb(u)) for u in layer.units}
                after = runner.branch(sample, weights)[change.note.output]
                growth[at, place] += change(sample, before, after) / len(disturbances)
        sample.clear()
    return [float(one) for one in growth.mean(axis=0)]
