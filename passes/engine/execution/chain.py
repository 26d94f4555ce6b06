"""The blocks of a model as one differentiable function of weights that change.

Only one block's activations and weights are in memory at a time: the forward run keeps what
crosses block boundaries, and the backward run computes every block again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from ....ir import Feeds
from ....ir.analysis.blocks import Block
from ...tune_scales.scales import TunedScales
from ..pipeline.base import Runner

Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Link:
    """A block whose tuned weights are inputs.

    Attributes:
        inputs: Names of what it reads from graph inputs and earlier blocks.
        outputs: Names of what later blocks or the loss read of it.
        tuned: The units whose weights its nodes read.
        module: Maps inputs, then weights, to outputs.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tuned: tuple[TunedScales, ...]
    module: torch.nn.Module

    def run(self, values: Values) -> tuple[torch.Tensor, ...]:
        """Returns the outputs for the values of the inputs."""
        given = [values[name] for name in self.inputs]
        found: tuple[torch.Tensor, ...] = self.module(
            *given, *(one.weight() for one in self.tuned)
        )
        return found


class Chain:
    """Blocks in execution order, from the inputs of the graph to the outputs that count."""

    def __init__(
        self,
        blocks: Sequence[Block],
        tuned: Sequence[TunedScales],
        outputs: Sequence[ir.Value],
        runner: Runner,
    ) -> None:
        """Lowers every block once.

        Args:
            blocks: The graph.
            tuned: The units that change.
            outputs: Graph outputs that the loss reads.
            runner: Lowers blocks.
        """
        self._outputs = {_name(value) for value in outputs}
        by_weight = {one.unit.weight: one for one in tuned}
        needed = set(outputs)
        links = []
        for block in reversed(blocks):
            wanted = [value for value in block.outputs if value in needed]
            if wanted:
                links.append(_link(block, wanted, by_weight, runner))
                needed |= set(block.inputs)
        self._links = links[::-1]

    def forward(self, feeds: Feeds) -> Values:
        """Returns, for one sample, what crosses the boundaries of blocks, and the outputs."""
        values = {
            name: torch.from_numpy(np.ascontiguousarray(array))
            for name, array in feeds.items()
        }
        with torch.no_grad():
            for link in self._links:
                values.update(zip(link.outputs, link.run(values), strict=True))
        return values

    def outputs(self, values: Values) -> Values:
        """Returns the outputs that count, of what ``forward`` returned."""
        return {name: values[name] for name in sorted(self._outputs)}

    def backward(self, values: Values, gradients: Values) -> None:
        """Adds to the gradient of every parameter.

        Args:
            values: What ``forward`` returned; used up.
            gradients: The gradient of the loss by output name; used up.
        """
        for link in reversed(self._links):
            ends = [gradients.pop(name, None) for name in link.outputs]
            if any(end is not None for end in ends):
                _step_back(link, values, ends, gradients)
            for name in link.outputs:
                values.pop(name)


def _step_back(
    link: _Link, values: Values, ends: list[torch.Tensor | None], gradients: Values
) -> None:
    """Runs a block again with gradients; adds to those of its inputs and parameters."""
    leaves = {
        name: values[name].detach().requires_grad_()
        for name in link.inputs
        if values[name].is_floating_point()
    }
    found = link.run({**values, **leaves})
    pairs = [
        (output, end)
        for output, end in zip(found, ends, strict=True)
        if end is not None and output.requires_grad
    ]
    if not pairs:
        return
    torch.autograd.backward([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            earlier = gradients.get(name)
            gradients[name] = leaf.grad if earlier is None else earlier + leaf.grad


def _link(
    block: Block,
    wanted: Sequence[ir.Value],
    by_weight: dict[ir.Value, TunedScales],
    runner: Runner,
) -> _Link:
    read = dict.fromkeys(value for node in block.nodes for value in node.inputs if value)
    weights = [value for value in read if value in by_weight]
    module = runner.segment(block.nodes, [*block.inputs, *weights], wanted)
    return _Link(
        tuple(_name(value) for value in block.inputs),
        tuple(_name(value) for value in wanted),
        tuple(by_weight[value] for value in weights),
        module,
    )


def _name(value: ir.Value) -> str:
    return str(value.name)
