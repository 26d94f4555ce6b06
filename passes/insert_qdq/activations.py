"""Quantized activations: what products and convolutions read instead of floats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...ir import BlockId, Feeds, annotate, note_of
from ..engine.emission.emitter import Names, store
from ..engine.execution.exposing import observe
from ..engine.execution.samples import Samples
from ..engine.numerics.activation_grid import Grid
from ..engine.numerics.histogram import Histogram
from ..engine.pipeline.base import PassContext


def histograms(
    model: ir.Model, values: Sequence[ir.Value], feeds: Sequence[Feeds], context: PassContext
) -> dict[ir.Value, Histogram]:
    """Runs samples and returns which numbers each of ``values`` held."""
    seen = {value: Histogram() for value in values}
    samples = Samples.of(context, feeds)
    for value, tokens in observe(model, values, samples, context, "observing activations"):
        seen[value].add(tokens)
    return seen


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
