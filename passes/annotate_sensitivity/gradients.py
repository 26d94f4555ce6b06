"""First-order sensitivity of blocks: gradients of the loss with respect to their weights.

One sample is in memory at a time: a forward run that keeps what crosses block boundaries, and
the blocks backward in reverse, each run again with gradients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from ...ir import Unit
from ...ir.analysis.blocks import Block
from ..engine.execution.executor import weight_of
from ..engine.execution.samples import Sample, Samples
from ..engine.numerics.doubles import with_doubles
from ..engine.statistics.objective import choose_objective
from .disturbed import LossSettings
from .layers import Layer
from .loss_change import LossChange
from .metric import Asked
from .running import block_runner


def first_order(
    asked: Asked[LossSettings], layers: Sequence[Layer], sizes: Mapping[str, float]
) -> list[float]:
    """Returns ``E |<dl/dW, d>|`` of every layer, in the closed form of ``taylor``.

    Args:
        asked: The request to the metric.
        layers: The layers.
        sizes: By unit: the standard deviation of the noise ``d``.
    """
    slopes = _Slopes(asked, {unit.weight: unit for one in layers for unit in one.units})
    samples = Samples.of(asked.context, slopes.change.samples.first(asked.settings.samples))
    found = []
    for sample in asked.context.progress.track(samples, len(samples), "trying taylor"):
        squares = slopes.squares(sample)
        found.append([_expected(layer, squares, sizes) for layer in layers])
    return [float(one) for one in np.mean(found, axis=0)]


def _expected(layer: Layer, squares: Mapping[str, float], sizes: Mapping[str, float]) -> float:
    """Returns the mean absolute value of the Gaussian scalar product."""
    variance = sum(sizes[one.name] ** 2 * squares.get(one.name, 0.0) for one in layer.units)
    return math.sqrt(2 / math.pi * variance)


class _Slopes:
    """Gradients of the mean loss with respect to stored weights."""

    def __init__(self, asked: Asked[LossSettings], units: Mapping[ir.Value, Unit]) -> None:
        self.change = LossChange.of(asked, asked.settings.labels)
        self._units = units
        tokens = self.change.samples.tokens
        self._objective = choose_objective(asked.model, tokens, self.change.note.objective)
        self._runner = block_runner(asked, self._outputs)
        self._read = [
            [units[value] for value in _read(block) if value in units]
            for block in self._runner.blocks
        ]

    @property
    def _outputs(self) -> list[str]:
        return [str(value.name) for value in self._objective.outputs]

    def squares(self, sample: Sample) -> dict[str, float]:
        """Returns the squared norm of ``dl/dW`` of every unit, for one sample."""
        self._runner.run(sample)
        sample.gradients.update(self._at_outputs(sample))
        left = Counter(unit.name for units in self._read for unit in units)
        partial: dict[str, torch.Tensor] = {}
        squares: dict[str, float] = {}
        for block, units in zip(self._runner.blocks[::-1], self._read[::-1], strict=True):
            weights = {unit.weight: weight_of(unit) for unit in units}
            _, gradients = self._runner.backward(sample, block, weights=weights)
            for name in (unit.name for unit in units):
                if name in gradients:
                    earlier = partial.get(name)
                    gradient = gradients[name]
                    partial[name] = gradient if earlier is None else earlier + gradient
                left[name] -= 1
                if not left[name] and name in partial:
                    squares[name] = float(
                        with_doubles(partial.pop(name)).double().square().sum()
                    )
        sample.clear()
        return squares

    def _at_outputs(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Returns the gradient of the mean loss with respect to the outputs."""
        if self.change.labels == "text":
            output = self.change.note.output
            return {output: self._of_text(sample, sample[output])}
        ends = {}
        for place, name in enumerate(self._outputs):
            gradient, places = self._objective.gradient(
                sample[name], sample.padding, sample.generator(place)
            )
            ends[name] = gradient / max(places, 1)
        return ends

    def _of_text(self, sample: Sample, logits: torch.Tensor) -> torch.Tensor:
        places, labels = self.change.next_tokens(sample, tuple(logits.shape[:-1]))
        leaf = logits.detach().clone().requires_grad_()
        at = tuple(torch.from_numpy(one).to(leaf.device) for one in places)
        loss = torch.nn.functional.cross_entropy(
            leaf[at].float(), torch.from_numpy(labels.astype(np.int64)).to(leaf.device)
        )
        (gradient,) = torch.autograd.grad(loss, [leaf])
        return gradient


def _read(block: Block) -> list[ir.Value]:
    """Returns the values that the nodes of a block read, each once."""
    return list(dict.fromkeys(value for node in block.nodes for value in node.inputs if value))
