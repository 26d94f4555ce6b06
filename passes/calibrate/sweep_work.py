"""What the sweeps take, and what they leave: the formulas of ``calibrate``.

For S samples, each of which takes m multiply-adds of weights:

    blocks        3 m S        forward, forward again, and back to the inputs
    Hessians      K^2 for each place of a product of K columns, or of a lookup
    couplings     R^2 for each place of a product of R rows
    moments       a few walks over what products read and make; many over the logits
    files         the statistics, once for each wave of samples, and what waits at boundaries
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...ir import Unit, find_units
from ...ir.analysis.blocks import Block, blocks_of
from ..engine.execution.executor import BlockRunner
from ..engine.execution.extent import FLOAT_BYTES, Extent
from ..engine.execution.samples import WAVE_BYTES
from ..engine.pipeline.base import PassContext
from ..engine.pipeline.work import Kind, Work
from ..engine.statistics.moments import moment_layout
from ..engine.statistics.objective import Objective

_SWEEPS = 3
_INPUT_WALKS, _OUTPUT_WALKS = 12, 6  # over what a product reads, and its gradient
_LOGIT_WALKS = 20  # softmax, its derivative, draws, and the closed form of the rows
_ACTIVATIONS = 3  # copies of what products read and make that a block holds
_LOGITS = 6  # ... of logits
_WEIGHTS = 1  # ... of a block's weights


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
    count = len(context.calibration.training)
    layout = moment_layout(units, coupled=coupled)
    kept = float(sum(_bytes(shape, kind) for shape, kind in layout.values()))
    blocks = blocks_of(model)
    waiting = _boundaries(blocks, extent, objective, context)
    waves = max(1.0, waiting * count / WAVE_BYTES)
    amounts = {
        Kind.SWEEP: _SWEEPS * count * extent.multiply_adds(find_units(model)),
        Kind.PRODUCT: count * sum(_grams(unit, extent, layout) for unit in units),
        Kind.WALK: count * sum(_walks(unit, extent, objective) for unit in units),
        Kind.WRITE: kept * waves + 2 * waiting * count,
    }
    held = max((_held(one, units, extent, objective, layout) for one in blocks), default=0.0)
    return Work(amounts, held=held, kept=kept, scratch=min(waiting * count, WAVE_BYTES))


def runtime_work(model: ir.Model, units: Sequence[Unit], context: PassContext) -> Work:
    """Returns the work of measuring in the runtime, where torch cannot run the graph."""
    assert context.calibration is not None
    extent = Extent.of(model, context.calibration)
    count = len(context.calibration.training)
    layout = moment_layout(units, coupled=False)
    kept = float(sum(_bytes(shape, kind) for shape, kind in layout.values()))
    forward = extent.multiply_adds(find_units(model))
    amounts = {
        Kind.RUN: (count + len(units)) * forward,  # and one run with each unit rounded
        Kind.PRODUCT: count * sum(_grams(unit, extent, layout) for unit in units),
        Kind.WRITE: kept,
    }
    return Work(amounts, held=2 * kept, kept=kept)


def _bytes(shape: Sequence[int], kind: np.typing.DTypeLike) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize


def _grams(unit: Unit, extent: Extent, layout: object) -> float:
    """Returns the multiply-adds of a unit's second moments, for one sample."""
    rows, columns = map(float, unit.shape)
    assert isinstance(layout, dict)
    total = 0.0
    for at, use in enumerate(unit.uses):
        if use.takes_floats:
            total += rows * columns**2 if f"{unit.name}/{at}/hessian" in layout else 0.0
            continue
        between = rows**2 if f"{unit.name}/{at}/coupling" in layout else 0.0
        total += extent.places(use) * (columns**2 + between)
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
) -> float:
    """Returns the bytes of one sample that wait between blocks."""
    runner = BlockRunner(context.runner, blocks, objective.outputs)
    values = {value for block in blocks[:-1] for value in runner.handed_on(block)}
    return float(sum(FLOAT_BYTES * extent.entries(value) for value in values))


def _held(
    block: Block,
    units: Sequence[Unit],
    extent: Extent,
    objective: Objective,
    layout: object,
) -> float:
    """Returns the bytes that one block takes while it runs back."""
    assert isinstance(layout, dict)
    inside, total = set(block.nodes), 0.0
    for unit in units:
        rows, columns = unit.shape
        uses = [use for use in unit.uses if use.node in inside]
        if not uses:
            continue
        names = (name for name in layout if name.rsplit("/", 2)[0] == unit.name)
        total += sum(_bytes(*layout[name]) for name in names)
        total += _WEIGHTS * FLOAT_BYTES * unit.size
        for use in uses:
            copies = _LOGITS if use.node.outputs[0] in objective.outputs else _ACTIVATIONS
            seen = 0 if use.kind == "lookup" else columns
            total += FLOAT_BYTES * extent.places(use) * (_ACTIVATIONS * seen + copies * rows)
    return total
