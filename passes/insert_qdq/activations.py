"""Quantized activations: what products and convolutions read instead of floats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ...ir import BlockId, Feeds, annotate, note_of
from ...ir.units import stored_tensor
from ..engine.emission.emitter import Names, store
from ..engine.numerics.activation_grid import Grid
from ..engine.numerics.histogram import Histogram
from ..engine.pipeline.base import PassContext
from ..engine.statistics.runtime_moments import exposing

_BYTES_AT_ONCE = 1 << 28


def observe(
    model: ir.Model, values: Sequence[ir.Value], feeds: Sequence[Feeds], context: PassContext
) -> dict[ir.Value, Histogram]:
    """Runs samples in the target runtime and returns the arrays of ``values``.

    Outputs that fit into memory together come from one run.
    """
    seen = {value: Histogram() for value in values}
    given = {str(value.name): value for value in values if value.is_graph_input()}
    computed = []
    for value in values:
        fixed = stored_tensor(value)
        if fixed is not None:
            seen[value].add(fixed.numpy())
        elif not value.is_graph_input():
            computed.append(value)
    with context.runner.session(exposing(model, computed)) as session:
        for feed in context.progress.track(feeds, len(feeds), "observing activations"):
            for name, value in given.items():
                seen[value].add(feed[name])
            for wave in _waves(computed, feed):
                found = session.run(feed, [str(value.name) for value in wave])
                for value in wave:
                    seen[value].add(found[str(value.name)])
    return seen


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


def quantize(
    graph: ir.Graph, names: Names, value: ir.Value, grid: Grid, dtype: ir.DataType
) -> ir.Value:
    """Puts a QuantizeLinear and a DequantizeLinear after ``value``.

    Args:
        graph: Where they go.
        names: Hands out names.
        value: The activation.
        grid: The codes that it is rounded to.
        dtype: Type of the activation, and of the result.

    Returns:
        The rounded activation.
    """
    prefix = str(value.name)

    def constant(name: str, array: np.ndarray) -> ir.Value:
        return store(graph, names.free(f"{prefix}/{name}"), array)

    def node(op_type: str, name: str, given: ir.Value, kind: ir.DataType) -> ir.Node:
        full = names.free(f"{prefix}/{name}")
        output = ir.Value(name=full, type=ir.TensorType(kind), shape=value.shape)
        return ir.node(op_type, [given, scale, zero], outputs=[output], name=full)

    scale = constant("scale", np.array(grid.scale, dtype=dtype.numpy()))
    zero = constant("zero_point", np.array(grid.zero_point, grid.dtype))
    kind = ir.DataType.from_numpy(np.dtype(grid.dtype))
    rounding = node("QuantizeLinear", "codes", value, kind)
    widening = node("DequantizeLinear", "quantized", rounding.outputs[0], dtype)
    _place(graph, value, [rounding, widening])
    return widening.outputs[0]


def _place(graph: ir.Graph, value: ir.Value, nodes: list[ir.Node]) -> None:
    """Inserts ``nodes`` right after the producer of ``value``, into the same block."""
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
        return
    block = note_of(producer, BlockId)
    if block is not None:
        for node in nodes:
            annotate(node, block)
    graph.insert_after(producer, nodes)
