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
    readers = {usage.node for usage in unit.weight.uses()}
    first = next(node for node in graph if node in readers)
    graph.insert_before(first, emit.nodes)
    unit.weight.replace_all_uses_with(weight)
    forget_weight(graph, unit)


def forget_weight(graph: ir.Graph, unit: Unit) -> None:
    """Removes the float weight and its views as far as nothing reads them any more."""
    for view in reversed(unit.views):
        if not view.outputs[0].uses():
            graph.remove(view, safe=True)
    if not unit.weight.uses():
        graph.initializers.pop(unit.name, None)
