"""What the sweeps take, and what they leave: the formulas of ``calibrate``.

For S samples, each of which takes m multiply-adds of weights:

    blocks        3 m S        forward, forward again, and back to the inputs
    Hessians      K^2 for each place of a product of K columns, or of a lookup
    couplings     R^2 for each place of a product of R rows
    moments       a few walks over what products read and make; many over the logits
    files         half of each square in float16, and what waits at boundaries
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ...ir import Unit, find_units
from ...ir.analysis.blocks import Block, blocks_of
from ..engine.execution.devices import CPU
from ..engine.execution.executor import BlockRunner
from ..engine.execution.extent import FLOAT_BYTES, Extent
from ..engine.numerics.gram import share_of_square
from ..engine.pipeline.base import PassContext
from ..engine.pipeline.work import Kind, Work
from ..engine.statistics.moments import UnitMoments
from ..engine.statistics.objective import Objective
from .shards import EXACT_BYTES, SHARD

_SWEEPS = 3
_INPUT_WALKS, _OUTPUT_WALKS = 12, 6  # over what a product reads, and its gradient
_LOGIT_WALKS = 20  # softmax, its derivative, draws, and the closed form of the rows
_ACTIVATIONS = 3  # copies of what products read and make that a block holds
_LOGITS = 6  # ... of logits
_WEIGHTS = 1  # ... of a block's weights
_PACKING = 2  # walks over squares, row by row, for a byte that is stored


def sweep_work(
    model: ir.Model,
    units: Sequence[Unit],
    objective: Objective,
    context: PassContext,
    *,
    coupled: bool,
) -> Work:
    """Returns the work of both sweeps over the samples of the context."""
    assert context.calibration is not None
    extent = Extent.of(model, context.calibration)
    count, blocks = len(context.calibration.training), blocks_of(model)
    waiting = _boundaries(blocks, extent, objective, context)
    total = count * sum(waiting)
    narrow = total > EXACT_BYTES
    kept = float(sum(_kept(unit, coupled) for unit in units))
    amounts = {
        Kind.SWEEP: _SWEEPS * count * extent.multiply_adds(find_units(model)),
        Kind.PRODUCT: count * sum(_grams(unit, extent, coupled) for unit in units),
        Kind.WALK: count * sum(_walks(unit, extent, objective) for unit in units)
        + _PACKING * kept,
        Kind.WRITE: kept + total * (1.5 if narrow else 2),  # values, and gradients in float32
    }
    shards = -(-count // SHARD)
    at_once = min(os.cpu_count() or 1, shards) if context.device == CPU else 1
    sums = at_once + (1 if shards > 1 else 0)
    held = [
        _held(block, units, extent, objective, (sums, at_once), coupled)
        + 2 * SHARD * at_once * at_boundary
        for block, at_boundary in zip(blocks, [*waiting, 0.0], strict=True)
    ]
    scratch = total * (0.5 if narrow else 1) + count * max(waiting, default=0.0)
    return Work(amounts, held=max(held, default=0.0), kept=kept, scratch=scratch)


def runtime_work(model: ir.Model, units: Sequence[Unit], context: PassContext) -> Work:
    """Returns the work of measuring in the runtime, where torch cannot run the graph."""
    assert context.calibration is not None
    extent = Extent.of(model, context.calibration)
    count = len(context.calibration.training)
    kept = float(sum(_kept(unit, False) for unit in units))
    forward = extent.multiply_adds(find_units(model))
    amounts = {
        Kind.RUN: (count + len(units)) * forward,  # and one run with each unit rounded
        Kind.PRODUCT: count * sum(_grams(unit, extent, False) for unit in units),
        Kind.WRITE: kept,
    }
    return Work(amounts, held=2 * kept, kept=kept)


def _squares(unit: Unit, coupled: bool) -> Iterator[tuple[int, int]]:
    """Yields the use and the size of every square array of a unit."""
    rows, columns = unit.shape
    for name in UnitMoments(unit).arrays(coupled):
        _, at, what = name.rsplit("/", 2)
        if what in ("hessian", "coupling"):
            yield int(at), columns if what == "hessian" else rows


def _kept(unit: Unit, coupled: bool) -> float:
    """Returns the bytes of a unit's moments on disk: half of each square, in float16."""
    small = FLOAT_BYTES * len(unit.uses) * (unit.shape[0] + 3 * unit.shape[1])
    return float(small + sum(size**2 for _, size in _squares(unit, coupled)))


def _grams(unit: Unit, extent: Extent, coupled: bool) -> float:
    """Returns the multiply-adds of a unit's second moments, for one sample."""
    total = 0.0
    for at, size in _squares(unit, coupled):
        use = unit.uses[at]
        rows = float(unit.shape[0]) if use.takes_floats else extent.places(use)
        total += rows * share_of_square() * size**2
    return total


def _walks(unit: Unit, extent: Extent, objective: Objective) -> float:
    """Returns the entries that are walked over for a unit's moments, for one sample."""
    rows, columns = unit.shape
    total = 0.0
    for use in unit.uses:
        made = use.node.outputs[0] in objective.outputs
        walks = _LOGIT_WALKS if made else _OUTPUT_WALKS
        total += extent.places(use) * (_INPUT_WALKS * columns + walks * rows)
    return total


def _boundaries(
    blocks: Sequence[Block], extent: Extent, objective: Objective, context: PassContext
) -> list[float]:
    """Returns the bytes of one sample that every block but the last leaves for others."""
    runner = BlockRunner(context.runner, blocks, objective.outputs)
    return [
        float(sum(FLOAT_BYTES * extent.entries(value) for value in runner.handed_on(block)))
        for block in blocks[:-1]
    ]


def _held(
    block: Block,
    units: Sequence[Unit],
    extent: Extent,
    objective: Objective,
    copies: tuple[int, int],
    coupled: bool,
) -> float:
    """Returns the bytes that one block takes while it runs back.

    Args:
        block: The block.
        units: All units.
        extent: The size of a sample.
        objective: Knows the logits.
        copies: How many copies of the sums there are, and how many samples run at once.
        coupled: Whether they include couplings.
    """
    inside, total, (sums, at_once) = set(block.nodes), 0.0, copies
    for unit in units:
        rows, columns = unit.shape
        uses = [use for use in unit.uses if use.node in inside]
        if not uses:
            continue
        squares = sum(size**2 for _, size in _squares(unit, coupled))
        total += FLOAT_BYTES * (sums * squares + _WEIGHTS * at_once * unit.size)
        for use in uses:
            outputs = _LOGITS if use.node.outputs[0] in objective.outputs else _ACTIVATIONS
            seen = 0 if use.kind == "lookup" else columns
            entries = _ACTIVATIONS * seen + outputs * rows
            total += FLOAT_BYTES * at_once * extent.places(use) * entries
    return total
