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
from onnx_ir.tensor_adapters import to_torch_dtype

from ...ir import Feeds, Unit
from ...ir.analysis.blocks import Block
from ..engine.execution.segments import Segments, Values
from ..engine.statistics.objective import choose_objective
from .disturbed import LossSettings
from .layers import Layer
from .loss_change import LossChange
from .metric import Asked


def first_order(
    asked: Asked[LossSettings], layers: Sequence[Layer], sizes: Mapping[str, float]
) -> list[float]:
    """Returns ``E |<dl/dW, d>|`` of every layer, in the closed form of ``taylor``.

    Args:
        asked: The request to the metric.
        layers: The layers.
        sizes: By unit: the standard deviation of the noise ``d``.
    """
    units = {unit.name: unit for layer in layers for unit in layer.units}
    backward = _Backward(asked, list(units.values()))
    samples = backward.change.samples.first(asked.settings.samples)
    found = []
    for at, feed in enumerate(
        asked.context.progress.track(samples, len(samples), "trying taylor")
    ):
        squares = backward.squares(feed, at)
        found.append([_expected(layer, squares, sizes) for layer in layers])
    return [float(one) for one in np.mean(found, axis=0)]


def _expected(layer: Layer, squares: Mapping[str, float], sizes: Mapping[str, float]) -> float:
    """Returns the mean absolute value of the Gaussian scalar product."""
    variance = sum(sizes[one.name] ** 2 * squares.get(one.name, 0.0) for one in layer.units)
    return math.sqrt(2 / math.pi * variance)


class _Backward:
    """Gradients of the mean loss with respect to stored weights."""

    def __init__(self, asked: Asked[LossSettings], units: Sequence[Unit]) -> None:
        self.change = LossChange.of(asked, asked.settings.labels)
        self._asked = asked
        self._segments = Segments(asked.model, asked.context, asked.metric)
        tokens = self.change.samples.tokens
        self._objective = choose_objective(asked.model, tokens, self.change.note.objective)
        by_weight = {unit.weight: unit for unit in units}
        self._leaves = [
            [by_weight[value] for value in _read(block) if value in by_weight]
            for block in self._segments.blocks
        ]
        self._modules = [
            self._lower(block, leaves)
            for block, leaves in zip(self._segments.blocks, self._leaves, strict=True)
        ]

    def _lower(self, block: Block, leaves: Sequence[Unit]) -> torch.nn.Module:
        inputs = [*block.inputs, *(unit.weight for unit in leaves)]
        return self._asked.context.runner.segment(block.nodes, inputs, block.outputs)

    def squares(self, feed: Feeds, at: int) -> dict[str, float]:
        """Returns the squared norm of ``dl/dW`` of every unit, for sample number ``at``."""
        exact = self._segments.exact(feed)
        reaching = self._at_outputs(feed, exact, at)
        left = Counter(unit.name for leaves in self._leaves for unit in leaves)
        partial: dict[str, torch.Tensor] = {}
        squares: dict[str, float] = {}
        for place in reversed(range(len(self._modules))):
            for name, gradient in self._step(place, exact, reaching).items():
                partial[name] = partial[name] + gradient if name in partial else gradient
            for unit in self._leaves[place]:
                left[unit.name] -= 1
                if not left[unit.name] and unit.name in partial:
                    total = partial.pop(unit.name).double()
                    squares[unit.name] = float(total.square().sum())
        return squares

    def _step(self, place: int, exact: Values, reaching: Values) -> Values:
        """Runs one block backward; adds to ``reaching``, returns gradients of its weights."""
        block, units = self._segments.blocks[place], self._leaves[place]
        given = {str(value.name): exact[str(value.name)].detach() for value in block.inputs}
        weights = {unit.name: _tensor_of(unit) for unit in units}
        leaves = {k: v for k, v in {**given, **weights}.items() if v.is_floating_point()}
        for tensor in leaves.values():
            tensor.requires_grad_()
        found = self._modules[place](*given.values(), *weights.values())
        ends = [
            (tensor, reaching[str(value.name)])
            for value, tensor in zip(block.outputs, found, strict=True)
            if str(value.name) in reaching and tensor.requires_grad
        ]
        if not ends:
            return {}
        outputs, gradients = zip(*ends, strict=True)
        slopes = torch.autograd.grad(
            outputs, list(leaves.values()), gradients, allow_unused=True
        )
        by_name = {k: g.detach() for k, g in zip(leaves, slopes, strict=True) if g is not None}
        for name in given.keys() & by_name.keys():
            earlier = reaching.get(name)
            reaching[name] = by_name[name] if earlier is None else earlier + by_name[name]
        return {name: by_name[name] for name in weights.keys() & by_name.keys()}

    def _at_outputs(self, feed: Feeds, exact: Values, at: int) -> Values:
        """Returns the gradient of the mean loss with respect to the outputs."""
        output = self.change.note.output
        if self.change.labels == "text":
            return {output: self._of_text(feed, exact[output])}
        generator = torch.Generator().manual_seed(self._asked.context.seed * 1_000_003 + at)
        gradients = {}
        for value in self._objective.outputs:
            exactly = exact[str(value.name)]
            gradient = self._objective.gradient(exactly, generator)
            real = self.change.samples.real_places(feed, tuple(exactly.shape[:-1]))
            gradient = gradient * torch.from_numpy(real)[..., None]
            gradients[str(value.name)] = gradient / max(int(real.sum()), 1)
        return gradients

    def _of_text(self, feed: Feeds, logits: torch.Tensor) -> torch.Tensor:
        places, labels = self.change.next_tokens(feed, tuple(logits.shape[:-1]))
        leaf = logits.detach().clone().requires_grad_()
        at = tuple(torch.from_numpy(one) for one in places)
        loss = torch.nn.functional.cross_entropy(
            leaf[at].float(), torch.from_numpy(labels.astype(np.int64))
        )
        (gradient,) = torch.autograd.grad(loss, [leaf])
        return gradient


def _read(block: Block) -> list[ir.Value]:
    """Returns the values that the nodes of a block read, each once."""
    return list(dict.fromkeys(value for node in block.nodes for value in node.inputs if value))


def _tensor_of(unit: Unit) -> torch.Tensor:
    """Returns a copy of the weight in its own layout and type."""
    wide = torch.from_numpy(unit.tensor.numpy().astype(np.float32))
    return wide.to(to_torch_dtype(unit.tensor.dtype))
