"""By how much the loss grows when the weights of one layer at a time are changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...ir import Unit
from ..engine.execution.executor import weight_of
from ..engine.execution.samples import Samples
from .layers import Layer
from .loss_change import LossChange
from .metric import Asked
from .running import block_runner

SAMPLES = 4  # when nobody says how many
Disturb = Callable[[Unit], np.ndarray]


def loss_changes(
    asked: Asked, layers: Sequence[Layer], disturbances: Sequence[Disturb], labels: str
) -> list[float]:
    """Returns the mean growth of the loss for every layer; the baseline is the exact model.

    One sample is in memory at a time, with what crosses its block boundaries.

    Args:
        asked: What the metric was asked.
        layers: The layers to change, one at a time.
        disturbances: Each makes other weights (rows x columns) for a unit; the results of
            several are averaged.
        labels: What the loss is counted on (see ``loss_change``).
    """
    metric, context = asked.settings.metric, asked.context
    change = LossChange.of(asked, labels)
    runner = block_runner(asked, [change.note.output])
    samples = Samples.of(context, change.samples.first(asked.settings.samples or SAMPLES))
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
