"""Values inside a graph: computed block by block where torch can, else by the runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ....ir import BlockId, Feeds, note_of
from ....ir.analysis.blocks import blocks_of
from ....ir.units import stored_tensor
from ..pipeline.base import PassContext
from .executor import BlockRunner
from .samples import Samples

_BYTES_AT_ONCE = 1 << 28
_AT_ONCE = 8  # samples that wait at the boundaries of blocks together


def exposing(model: ir.Model, values: Sequence[ir.Value]) -> ir.Model:
    """Returns a copy of ``model`` that also outputs ``values``."""
    copy = model.clone()
    by_name = {str(out.name): out for node in copy.graph for out in node.outputs}
    present = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(by_name[str(v.name)] for v in values if v.name not in present)
    return copy


def observe(
    model: ir.Model,
    values: Sequence[ir.Value],
    samples: Samples,
    context: PassContext,
    what: str,
) -> Iterator[tuple[ir.Value, np.ndarray]]:
    """Runs samples and yields each value's tokens, sample by sample.

    A graph in blocks that torch can run goes block by block, whatever its size. Others run in
    the target runtime; values that fit into memory together come from one run.

    Args:
        model: The graph.
        values: Values that it computes, reads or stores.
        samples: The samples.
        context: Runs the graph, and shows progress.
        what: What the user is told meanwhile.

    Yields:
        A value, and tokens x columns of it.
    """
    if _runs_in_blocks(model, context):
        yield from _observe_blocks(model, values, samples, context, what)
        return
    stored = {value: stored_tensor(value) for value in values}
    computed = [v for v in values if stored[v] is None and not v.is_graph_input()]
    with context.runner.session(exposing(model, computed)) as session:
        for sample in context.progress.track(samples, len(samples), what):
            for value in values:
                tensor = stored[value]
                if tensor is not None:
                    yield value, sample.padding.tokens(tensor.numpy())
                elif value.is_graph_input():
                    yield value, sample.padding.tokens(sample.arrays[str(value.name)])
            for wave in _waves(computed, sample.arrays):
                made = session.run(sample.arrays, [str(value.name) for value in wave])
                for value in wave:
                    yield value, sample.padding.tokens(made.pop(str(value.name)))


def _runs_in_blocks(model: ir.Model, context: PassContext) -> bool:
    noted = all(note_of(node, BlockId) is not None for node in model.graph)
    return noted and not context.runner.unsupported(model.graph)


def _observe_blocks(
    model: ir.Model,
    values: Sequence[ir.Value],
    samples: Samples,
    context: PassContext,
    what: str,
) -> Iterator[tuple[ir.Value, np.ndarray]]:
    blocks = blocks_of(model)
    runner = BlockRunner(context.runner, blocks)
    place = {
        value: block for block in blocks for node in block.nodes for value in node.outputs
    }
    left, wanted = list(dict.fromkeys(values)), []
    for block in blocks:
        read = {value for node in block.nodes for value in node.inputs}
        here = [v for v in left if (place[v] is block if v in place else v in read)]
        left = [value for value in left if value not in here]
        wanted.append(here)
    stop = max((at + 1 for at, here in enumerate(wanted) if here), default=0)
    whole = list(samples)
    parts = [whole[at : at + _AT_ONCE] for at in range(0, len(whole), _AT_ONCE)]
    steps = [(part, at) for part in parts for at in range(stop)]
    for part, at in context.progress.track(steps, len(steps), what):
        for found in runner.forward(part, blocks[at], wanted[at]):
            for value in wanted[at]:
                yield value, found.tokens(value).cpu().numpy()
        if at + 1 == stop:
            for sample in part:
                sample.clear()


def _waves(values: Sequence[ir.Value], feed: Feeds) -> Iterator[list[ir.Value]]:
    positions = max((int(np.prod(array.shape[:2])) for array in feed.values()), default=1)
    wave: list[ir.Value] = []
    total = 0
    for value in values:
        size = 4 * _entries(value, positions)
        if wave and total + size > _BYTES_AT_ONCE:
            yield wave
            wave, total = [], 0
        wave.append(value)
        total += size
    if wave:
        yield wave


def _entries(value: ir.Value, positions: int) -> int:
    """Guesses how many numbers ``value`` holds for one sample."""
    dims = list(value.shape) if value.shape is not None else []
    known = int(np.prod([one for one in dims if isinstance(one, int)], dtype=np.int64))
    return known if len(dims) > 3 else positions * max(known, 1)
