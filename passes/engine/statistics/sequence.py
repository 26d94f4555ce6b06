"""Rounding in the order of execution, on inputs that the rounded blocks before give.

Samples run through a block as it is, to gather Hessians; its units are rounded; and the
samples run through what it has become. By layer, this is done for the units of a block that
wait for no other, then for those that read what these make, and so on. Only what crosses the
border to the next block is kept, on disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import onnx_ir as ir

from ....ir import Unit, UsageError, operands
from ....ir.analysis.blocks import Block, blocks_of
from ..execution.executor import BlockRunner
from ..execution.parallel import for_each
from ..execution.samples import Samples, Values
from ..numerics.gptq import working_bytes
from ..numerics.row_hessians import Key, RowHessians
from ..pipeline.base import PassContext
from ..pipeline.progress import SilentProgress

T = TypeVar("T")
Hessians = Mapping[Key, RowHessians]


class Gatherer(Protocol):
    """Sums Hessians of some units of one block at a time."""

    def begin(self, block: Block, units: Sequence[Unit]) -> list[ir.Value]:
        """Makes ready for units of a block; returns the values that ``add`` needs."""
        ...

    def add(self, values: Values) -> None:
        """Adds one sample's run of the block."""
        ...

    def end(self) -> dict[Key, RowHessians]:
        """Returns the Hessians to round the units against."""
        ...


def check_can_run(model: ir.Model, context: PassContext, who: str) -> None:
    """Refuses what cannot run block by block.

    Raises:
        UsageError: There are no samples, or an operator does not run in torch.
    """
    if context.calibration is None:
        raise UsageError(f"{who} needs samples", hint="give --calibration FILE")
    refused = context.runner.unsupported(model.graph)
    if refused:
        why = next(iter(refused.values()))
        raise UsageError(f"{who} cannot run this model block by block: {why}")


def in_sequence(
    model: ir.Model,
    units: Sequence[Unit],
    gather: Gatherer,
    work: Callable[[Unit, Hessians], T],
    context: PassContext,
    *,
    by_layer: bool,
    samples: int = 0,
) -> list[T]:
    """Calls ``work`` on every unit, block by block, with Hessians of the changed model.

    Units that several blocks read, or that nothing multiplies by, come first, without any.

    Args:
        model: The graph, in blocks.
        units: What to work on.
        gather: Sums their Hessians.
        work: Changes a unit.
        context: Samples, the runner and the progress.
        by_layer: Whether units wait for those of their own block that they depend on.
        samples: How many samples to look at, the first ones; 0 for all.

    Returns:
        What ``work`` returned, in the order of ``units``.
    """
    assert context.calibration is not None
    blocks = blocks_of(model)
    by_block = _by_block(units, blocks)
    early = by_block.pop(-1, [])
    found = _each(work, early, {}, context)
    done = dict(zip((unit.name for unit in early), found, strict=True))
    runner = BlockRunner(context.runner, blocks)
    taken = Samples.of(context, context.calibration.first(samples), on_disk=True)
    for block in context.progress.track(blocks, len(blocks), "rounding block by block"):
        waiting = by_block.get(block.index, [])
        for here in _layers(waiting, block) if by_layer else [waiting] if waiting else []:
            wanted = gather.begin(block, here)
            for values in runner.forward(taken, block, wanted, go_on=False):
                gather.add(values)
            found = _each(work, here, gather.end(), context)
            done.update(zip((unit.name for unit in here), found, strict=True))
        for _ in runner.forward(taken, block):
            pass
    return [done[unit.name] for unit in units]


def _each(
    work: Callable[[Unit, Hessians], T],
    units: Sequence[Unit],
    found: Hessians,
    context: PassContext,
) -> list[T]:
    return for_each(
        lambda unit: work(unit, found),
        units,
        SilentProgress(),
        "rounding",
        need=lambda unit: working_bytes(*unit.shape),
        device=context.device,
    )


def _by_block(units: Sequence[Unit], blocks: Sequence[Block]) -> dict[int, list[Unit]]:
    """Sorts units by the block that reads them; -1 for those that must not wait for one."""
    place = {node: block.index for block in blocks for node in block.nodes}
    found: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        readers = {place[use.node] for use in unit.uses}
        multiplied = any(use.kind == "product" for use in unit.uses)
        found[readers.pop() if multiplied and len(readers) == 1 else -1].append(unit)
    return found


def _layers(units: Sequence[Unit], block: Block) -> list[list[Unit]]:
    """Returns the units of a block by how many others they wait for, one after the other."""
    products = {use.node for unit in units for use in unit.uses}
    depth: dict[ir.Node, int] = {}
    for node in block.nodes:
        makers = [value.producer() for value in operands(node)]
        depth[node] = max(
            (depth[m] + (m in products) for m in makers if m in depth), default=0
        )
    layers: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        layers[max(depth[use.node] for use in unit.uses)].append(unit)
    return [layer for _, layer in sorted(layers.items())]
