"""Divide activations at run time, where nothing that makes them can take a scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from ...ir import Unit
from ...ir.analysis.offered import result_type
from ..engine.emission.emitter import Emitter, Names
from .sites import Closed


def with_factors(model: ir.Model, closed: Iterable[Closed]) -> list[ir.Node]:
    """Multiplies activations by ones, which can take a scale; returns the new nodes.

    Activations of units that multiply something else too are left out.
    """
    names = Names(model)
    return [
        _add(model.graph, one.activation, one.units, names)
        for one in closed
        if one.units and all(_only_reads(unit, one.activation) for unit in one.units)
    ]


def _only_reads(unit: Unit, activation: ir.Value) -> bool:
    kinds = all(use.kind == "product" and use.activation is activation for use in unit.uses)
    return kinds and not unit.reason


def _add(
    graph: ir.Graph, activation: ir.Value, units: Sequence[Unit], names: Names
) -> ir.Node:
    readers = [use.node for unit in units for use in unit.uses]
    order = {node: at for at, node in enumerate(graph)}
    first = min(readers, key=lambda node: order[node])
    dtype = result_type(units[0], units[0].uses[0])
    emit = Emitter(graph, names, f"{activation.name}/columns", first)
    ones = emit.constant("factors", np.ones(units[0].shape[1], dtype.numpy()))
    scaled = emit.node(None, "scaled", "Mul", [activation, ones], dtype=dtype)
    scaled.shape = activation.shape
    graph.insert_before(first, emit.nodes)
    for node in readers:
        node.replace_input_with(0, scaled)
    return emit.nodes[0]


def remove_unused(model: ir.Model, added: Iterable[ir.Node]) -> None:
    """Takes out those that still multiply by ones."""
    for node in added:
        source, ones = node.inputs
        assert source is not None
        assert ones is not None
        assert ones.const_value is not None
        if np.all(ones.const_value.numpy() == 1):
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
            model.graph.initializers.pop(str(ones.name))
