"""The correlation score of a block (CPTQuant's CMPQ, Nanda et al. 2024, arXiv 2412.03599).

``s_i = 1 - mean_{j != i} rho(i, j)``, where ``rho`` compares the outputs of blocks i and j,
averaged over the tokens of a sample, by canonical correlations: a block whose output is unlike
those of the others is taken for sensitive. Padding counts in no average. The published code
compares the *inputs* of blocks by their first pair, pads included; its later version uses
PWCCA or SVCCA, which need fewer samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from ...ir import Calibration, Feeds, UsageError
from ...ir.analysis.blocks import is_float
from ..engine.execution.samples import Samples
from ..engine.numerics.canonical import Cloud, first_pair, pwcca, svcca
from ..engine.pipeline.chosen_options import at_least, one_of
from .layers import Layer, judgements, layers_of
from .metric import Asked, Judgement
from .running import block_runner

VARIANTS: Mapping[str, Callable[[Cloud, Cloud], float]] = {
    "plain": first_pair,
    "pwcca": pwcca,
    "svcca": svcca,
}
_FEWEST = 6  # points, without which even two components tell nothing


@dataclass(frozen=True)
class Settings:
    """Options of ``cca``.

    Attributes:
        samples: Samples to compare blocks on; 0 takes all.
        variant: ``plain`` (the first pair), ``pwcca`` or ``svcca``.
        window: Tokens that are averaged into one point; 0 averages whole samples.
    """

    samples: int = 0
    variant: str = "pwcca"
    window: int = 0

    def __post_init__(self) -> None:
        one_of(VARIANTS, variant=self.variant)
        at_least(0, samples=self.samples, window=self.window)


def judge(asked: Asked[Settings]) -> dict[str, Judgement]:
    """Scores every block by how little its output has in common with those of the others."""
    layers = layers_of(asked)
    points = _points(asked, layers)
    _check_points(points, asked.settings.variant)
    scores = dissimilarities([Cloud.of(one) for one in points], asked.settings.variant)
    return judgements(asked, layers, scores)


def dissimilarities(clouds: Sequence[Cloud], variant: str) -> list[float]:
    """Returns ``1 - mean_{j != i} rho(i, j)`` for every cloud; 0 for a cloud on its own."""
    similar = VARIANTS[variant]
    return [
        1.0 - float(np.mean([similar(x, y) for j, y in enumerate(clouds) if j != i] or [1.0]))
        for i, x in enumerate(clouds)
    ]


def _check_points(points: Sequence[np.ndarray], variant: str) -> None:
    """Refuses clouds in which everything correlates with everything.

    Raises:
        UsageError: There are too few points.
    """
    count = min(len(one) for one in points)
    if any(len(one) != count for one in points):
        raise UsageError(
            "metric=cca cannot compare blocks that see different numbers of places",
            hint="use metric=fisher",
        )
    channels = sorted(one.shape[1] for one in points)
    needed = sum(channels[-2:]) + 1 if variant == "plain" else _FEWEST
    if count < needed:
        raise UsageError(
            f"metric=cca with variant={variant} needs {needed} points, and the samples give "
            f"{count}",
            hint="give more samples, or a smaller window"
            + (", or use variant=pwcca" if variant == "plain" else ""),
        )


def _points(asked: Asked[Settings], layers: Sequence[Layer]) -> list[np.ndarray]:
    """Returns for every layer its pooled outputs, points x channels."""
    context = asked.context
    assert context.calibration is not None
    outputs = [str(_output(layer).name) for layer in layers]
    runner = block_runner(asked, outputs)
    samples = Samples.of(context, context.calibration.first(asked.settings.samples))
    found: list[list[np.ndarray]] = [[] for _ in layers]
    for sample in context.progress.track(samples, len(samples), "comparing blocks"):
        runner.run(sample)
        for points, name in zip(found, outputs, strict=True):
            output = _by_sample(sample[name], sample.arrays, context.calibration)
            real = sample.padding.real(output.shape[:2])
            points.append(pooled(output, real, asked.settings.window))
        sample.clear()
    return [_joined(points, name) for points, name in zip(found, outputs, strict=True)]


def _joined(points: Sequence[np.ndarray], name: str) -> np.ndarray:
    if len({one.shape[1] for one in points}) > 1:
        raise UsageError(
            f"metric=cca cannot compare {name!r}: its channels differ from sample to sample",
            hint="use metric=fisher",
        )
    return np.concatenate(points)


def _output(layer: Layer) -> ir.Value:
    """Returns the activation that the block hands on: the last that a later block reads."""
    own = set(layer.block.nodes)
    floats = [value for value in layer.block.outputs if is_float(value)]
    handed_on = [v for v in floats if any(usage.node not in own for usage in v.uses())]
    last = (handed_on or floats or list(layer.block.outputs))[-1:]
    if not last:
        raise UsageError(
            f"block {layer.block.index} hands nothing on to compare", hint="use metric=fisher"
        )
    return last[0]


def _by_sample(output: torch.Tensor, feed: Feeds, samples: Calibration) -> np.ndarray:
    """Returns an output in which rows of tokens, where they were flattened, are rows again."""
    array: np.ndarray = output.float().cpu().numpy()
    ids = feed.get(str(samples.tokens))
    if array.ndim == 2 and ids is not None and ids.ndim == 2 and ids.size == len(array):
        return array.reshape(*ids.shape, -1)
    return array


def pooled(output: np.ndarray, real: np.ndarray, window: int) -> np.ndarray:
    """Returns the means of an output over places, points x channels.

    Args:
        output: Samples x channels; samples x places x channels; or, of convolutions, samples x
            channels x axes of places.
        real: Samples x places: which of the places are no padding.
        window: How many places make a point, with 0 all of a sample. Windows that are padding
            throughout give no point.
    """
    if output.ndim <= 2:
        return np.atleast_2d(output)
    if output.ndim != 3:
        means: np.ndarray = output.reshape(*output.shape[:2], -1).mean(axis=2)
        return means
    points = []
    for rows, known in zip(output, real, strict=True):
        kept = rows[known]
        parts = np.array_split(kept, math.ceil(len(kept) / window)) if window else [kept]
        points += [part.mean(axis=0) for part in parts if len(part)]
    return np.stack(points) if points else np.empty((0, output.shape[-1]), output.dtype)
