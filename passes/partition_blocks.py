"""partition-blocks: give every node the number of its block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..ir import Annotation, BlockId, annotate, note_of, partition
from .engine.pipeline.base import Pass, PassContext, Promise


@dataclass(frozen=True)
class PartitionBlocks(Pass):
    """Cut the graph into blocks that exchange little more than the residual stream.

        %y = MatMul(%x, @w)      =>      %y = MatMul(%x, @w) #block{index=3}

    Calibration runs and differentiates one block at a time, so it needs the memory of one
    block.
    """

    name: ClassVar[str] = "partition-blocks"
    writes: ClassVar[tuple[type[Annotation], ...]] = (BlockId,)
    promise: ClassVar[Promise] = Promise.SAME_GRAPH

    def run(self, model: ir.Model, context: PassContext) -> bool:
        changed = False
        for node, index in partition(model).items():
            note = BlockId(index)
            changed |= note_of(node, BlockId) != note
            annotate(node, note)
        return changed
