"""A model's blocks as torch modules, run from any block on and with other weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
import torch

from ....ir import Feeds, Unit, UsageError
from ....ir.analysis.blocks import Block, blocks_of
from ..pipeline.base import PassContext

Values = dict[str, torch.Tensor]
Modules = Mapping[int, torch.nn.Module]


class Segments:
    """The blocks of a model as modules.

    Attributes:
        blocks: The blocks, in execution order.
        place: For every node, the place of its block.
    """

    def __init__(self, model: ir.Model, context: PassContext, metric: str) -> None:
        """Lowers every block.

        Args:
            model: The graph, with blocks.
            context: Holds the runner.
            metric: Who asks, for the message.

        Raises:
            UsageError: An operator of the model does not run in torch.
        """
        refused = context.runner.unsupported(model.graph)
        if refused:
            why = next(iter(refused.values()))
            raise UsageError(
                f"metric={metric} cannot run this model: {why}", hint="use metric=fisher"
            )
        self.blocks = blocks_of(model)
        self.place = {node: at for at, block in enumerate(self.blocks) for node in block.nodes}
        self._context = context
        self._modules = [self._lower(block) for block in self.blocks]

    def _lower(self, block: Block) -> torch.nn.Module:
        return self._context.runner.segment(block.nodes, block.inputs, block.outputs)

    def exact(self, feed: Feeds) -> Values:
        """Returns the inputs of a sample and everything that crosses a boundary."""
        values = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in feed.items()}
        self.run(values, 0, {})
        return values

    def run(self, values: Values, first: int, other: Modules) -> None:
        """Runs the blocks from ``first`` on, some as in ``other``; updates ``values``."""
        for at in range(first, len(self.blocks)):
            block, module = self.blocks[at], other.get(at, self._modules[at])
            with torch.no_grad():
                found = module(*(values[str(value.name)] for value in block.inputs))
            values.update(
                zip((str(value.name) for value in block.outputs), found, strict=True)
            )

    def swapped(self, weights: Iterable[tuple[Unit, np.ndarray]]) -> Modules:
        """Returns the blocks that read these units, lowered with other weights for them."""
        kept = []
        places: set[int] = set()
        try:
            for unit, matrix in weights:
                kept.append((unit, unit.weight.const_value))
                unit.replace(matrix)
                readers = (*(use.node for use in unit.uses), *unit.views)
                places.update(self.place[node] for node in readers)
            return {at: self._lower(self.blocks[at]) for at in places}
        finally:
            for unit, tensor in kept:
                unit.weight.const_value = tensor

    def with_weights(self, exact: Values, other: Modules) -> Values:
        """Returns what the model makes of a sample with the blocks in ``other``."""
        values = dict(exact)
        self.run(values, min(other, default=len(self.blocks)), other)
        return values
