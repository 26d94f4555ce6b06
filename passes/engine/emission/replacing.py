"""Replaces the float weight and its readers by emitted nodes."""

from __future__ import annotations

import onnx_ir as ir

from ....ir import Unit
from .emitter import Emitter


def replace_node(graph: ir.Graph, old: ir.Node, new: list[ir.Node], result: ir.Value) -> None:
    """Puts ``new`` where ``old`` stood; notes and the output's name move along."""
    new[0].metadata_props.update(
        {
            key: text
            for key, text in old.metadata_props.items()
            if key not in new[0].metadata_props
        }
    )
    ir.convenience.replace_nodes_and_values(graph, old, [old], new, old.outputs, [result])


def replace_weight(graph: ir.Graph, unit: Unit, weight: ir.Value, emit: Emitter) -> None:
    """Lets everything that reads the weight, also through views, read ``weight``."""
    graph.insert_before(first_reader(graph, unit), emit.nodes)
    unit.weight.replace_all_uses_with(weight)
    forget_weight(graph, unit)


def first_reader(graph: ir.Graph, unit: Unit) -> ir.Node:
    """Returns the first node that reads the weight, or that holds a graph which does."""
    readers = {*unit.views, *unit.refused, *(use.node for use in unit.uses)}
    return next(node for node in graph if node in readers)


def forget_weight(graph: ir.Graph, unit: Unit) -> None:
    """Removes the float weight and its views as far as nothing reads them any more."""
    for view in reversed(unit.views):
        if not view.outputs[0].uses():
            graph.remove(view, safe=True)
    if not unit.weight.uses():
        graph.initializers.pop(unit.name, None)
