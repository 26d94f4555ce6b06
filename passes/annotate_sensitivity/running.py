"""Running the model block by block, for the metrics that look at its outputs."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir import UsageError
from ...ir.analysis.blocks import blocks_of
from ..engine.execution.executor import BlockRunner
from .metric import Asked


def block_runner(asked: Asked[object], outputs: Sequence[str]) -> BlockRunner:
    """Returns what runs the blocks of the model.

    Args:
        asked: What the metric was asked.
        outputs: Names of outputs of blocks to have at the end, besides what blocks read.

    Raises:
        UsageError: An operator of the model does not run in torch.
    """
    refused = asked.context.runner.unsupported(asked.model.graph)
    if refused:
        why = next(iter(refused.values()))
        raise UsageError(
            f"metric={asked.metric} cannot run this model: {why}",
            hint="use metric=fisher",
        )
    blocks = blocks_of(asked.model)
    ends = [value for block in blocks for value in block.outputs if value.name in outputs]
    return BlockRunner(asked.context.runner, blocks, ends)
