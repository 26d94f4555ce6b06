"""What the outputs lose when a single activation is rounded, measured in the target runtime.

The graph gets a switch for each activation, so that one session serves all of them::

    x + switch * (DequantizeLinear(QuantizeLinear(x)) - x)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...ir import FLOAT_TYPES, Calibrated, Feeds, note_of, quantizable
from ..engine.emission.emitter import Names, store
from ..engine.execution.extent import FLOAT_BYTES, Extent
from ..engine.execution.padding import Padding
from ..engine.numerics.activation_grid import Grid
from ..engine.numerics.divergence import kl_divergence, squared_divergence
from ..engine.pipeline.base import PassContext
from ..engine.pipeline.work import Kind, Work

_SAMPLES = 2


def measured_losses(
    model: ir.Model, grids: Mapping[ir.Value, Grid], context: PassContext
) -> dict[ir.Value, float]:
    """Returns what rounding each activation alone costs, in the unit of the prediction.

    Args:
        model: The graph, in which nothing is rounded yet.
        grids: The activations, and the codes that they would be rounded to.
        context: Supplies samples and the runtime.
    """
    samples = context.calibration
    if samples is None or not grids:
        return {}
    note = note_of(model, Calibrated)
    logits = note is not None and note.objective == "logits"
    outputs = [note.output] if note is not None and logits else _float_outputs(model)
    switched, switches = _switched(model, grids)
    found = dict.fromkeys(grids, 0.0)
    divergence = kl_divergence if logits else squared_divergence
    off = {str(one.name): np.array(0, _numpy(one)) for one in switches.values()}
    with context.runner.session(switched) as session:

        def outcome(feed: Feeds, on: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            padding, given = Padding.of(feed, samples.mask), {**feed, **off, **on}
            results = session.run(given, outputs)
            return [padding.tokens(results[name]) for name in outputs]

        feeds = samples.first(_SAMPLES)
        exact = [outcome(feed, {}) for feed in feeds]
        for value, switch in context.progress.track(
            switches.items(), len(switches), "rounding one activation at a time"
        ):
            on = {str(switch.name): np.array(1, _numpy(switch))}
            for feed, wanted in zip(feeds, exact, strict=True):
                pairs = zip(wanted, outcome(feed, on), strict=True)
                lost = np.concatenate([divergence(*pair) for pair in pairs])
                found[value] += float(lost.mean()) / len(feeds)
    return found


def measuring(model: ir.Model, context: PassContext) -> Work:
    """Returns the work of ``measured_losses``, if every product's activation is rounded."""
    if context.calibration is None:
        return Work()
    extent, units = Extent.of(model, context.calibration), quantizable(model)
    rounded = {use.activation for unit in units for use in unit.uses if use.kind == "product"}
    runs = (1 + len(rounded)) * len(context.calibration.first(_SAMPLES))
    weights = float(sum(unit.size for unit in units))
    amounts = {
        Kind.RUN: runs * extent.multiply_adds(units),
        Kind.LOAD: FLOAT_BYTES * weights,
    }
    return Work(amounts, held=FLOAT_BYTES * weights)


def _float_outputs(model: ir.Model) -> list[str]:
    return [str(one.name) for one in model.graph.outputs if one.dtype in FLOAT_TYPES]


def _switched(
    model: ir.Model, grids: Mapping[ir.Value, Grid]
) -> tuple[ir.Model, dict[ir.Value, ir.Value]]:
    """Returns a copy of a graph with switches, and the switch of each activation."""
    copy = model.clone()
    names, graph = Names(copy), copy.graph
    values = {str(out.name): out for node in graph for out in node.outputs}
    values |= {str(one.name): one for one in graph.inputs}
    switches = {}
    for original, grid in grids.items():
        value = values[str(original.name)]
        dtype = value.dtype or ir.DataType.FLOAT
        readers = [(usage.node, usage.idx) for usage in value.uses()]
        switch = ir.Value(
            name=names.free(f"{value.name}/switch"),
            type=ir.TensorType(dtype),
            shape=ir.Shape(()),
        )
        graph.inputs.append(switch)
        switches[original] = switch
        nodes = _switch_nodes(graph, names, value, switch, grid, dtype)
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], nodes)
        else:
            graph.insert_after(producer, nodes)
        for node, at in readers:
            node.replace_input_with(at, nodes[-1].outputs[0])
    return copy, switches


def _switch_nodes(
    graph: ir.Graph,
    names: Names,
    value: ir.Value,
    switch: ir.Value,
    grid: Grid,
    dtype: ir.DataType,
) -> list[ir.Node]:
    prefix = f"{value.name}/switched"
    scale = store(graph, names.free(f"{prefix}/scale"), np.array(grid.scale, dtype.numpy()))
    zero = store(graph, names.free(f"{prefix}/zero"), np.array(grid.zero_point, grid.dtype))
    codes = ir.DataType.from_numpy(np.dtype(grid.dtype))
    nodes: list[ir.Node] = []

    def node(op_type: str, inputs: Sequence[ir.Value], kind: ir.DataType) -> ir.Value:
        name = names.free(f"{prefix}/{op_type.lower()}")
        output = ir.Value(name=name, type=ir.TensorType(kind), shape=value.shape)
        nodes.append(ir.node(op_type, inputs, outputs=[output], name=name))
        return output

    rounded = node("QuantizeLinear", [value, scale, zero], codes)
    rounded = node("DequantizeLinear", [rounded, scale, zero], dtype)
    lost = node("Sub", [rounded, value], dtype)
    node("Add", [value, node("Mul", [lost, switch], dtype)], dtype)
    return nodes


def _numpy(value: ir.Value) -> np.dtype[np.generic]:
    return (value.dtype or ir.DataType.FLOAT).numpy()
