"""Samples on their way through the blocks, one block after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir
import torch

from ....ir import Feeds
from ....ir.analysis.blocks import Block
from ..pipeline.base import PassContext
from .boundaries import Sample


class Prefix:
    """All samples behind the blocks that have run so far; what they left is on disk.

    A block runs with the weights that it has by then, so what later blocks see is what the
    changed graph makes.
    """

    def __init__(
        self, blocks: Sequence[Block], feeds: Sequence[Feeds], context: PassContext
    ) -> None:
        self._runner = context.runner
        self._last = {value: block.index for block in blocks for value in block.inputs}
        self._samples = [
            Sample(feed, context.scratch / f"prefix-{at:05d}") for at, feed in enumerate(feeds)
        ]

    def look(
        self, block: Block, wanted: Iterable[ir.Value], *, go_on: bool
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Runs every sample through ``block``; yields the wanted values and its inputs.

        Args:
            block: The next block.
            wanted: Values that the block makes, or reads.
            go_on: Whether the next block runs on what this one made now.
        """
        own = {value for node in block.nodes for value in node.outputs}
        left = [one for one in block.outputs if self._last.get(one, -1) > block.index]
        ends = [one for one in wanted if one in own or one.const_value is not None]
        ends = list(dict.fromkeys([*(left if go_on else ()), *ends]))
        module = self._runner.segment(block.nodes, block.inputs, ends)
        for sample in self._samples:
            given = sample.given(block)
            with torch.no_grad():
                found = module(*(given[str(value.name)] for value in block.inputs))
            made = dict(zip((str(value.name) for value in ends), found, strict=True))
            if go_on:
                self._leave(sample, block, {str(v.name): made[str(v.name)] for v in left})
            yield {**given, **made}

    def _leave(self, sample: Sample, block: Block, left: dict[str, torch.Tensor]) -> None:
        for name, tensor in left.items():
            sample.boundaries.put("value", name, tensor)
        for value in block.inputs:
            if self._last[value] == block.index:
                sample.boundaries.drop("value", str(value.name))

    def go_on(self, block: Block) -> None:
        """Runs every sample through ``block`` for what it leaves behind."""
        for _ in self.look(block, (), go_on=True):
            pass

    def clear(self) -> None:
        """Removes what is on disk."""
        for sample in self._samples:
            sample.boundaries.clear()
