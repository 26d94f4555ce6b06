"""Parts of a graph: the nodes that make one value from a few others."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Slice:
    """The nodes between some values and another.

    Attributes:
        nodes: In execution order.
        inputs: Values at which the search ended.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]


def slice_of(end: ir.Value, stops: Callable[[ir.Value], bool]) -> Slice:
    """Returns what makes ``end`` of constants and of values at which ``stops`` says so.

    Args:
        end: A value that a node makes; it does not stop the search.
        stops: Tells whether a value is to be given from outside.
    """
    inputs: dict[ir.Value, None] = {}
    nodes: dict[ir.Node, None] = {}
    todo = [(end, False)]
    while todo:
        value, done = todo.pop()
        node = value.producer()
        if node is None or (value is not end and stops(value)):
            if value.const_value is None or stops(value):
                inputs[value] = None
        elif done:
            nodes[node] = None
        elif node not in nodes:
            todo.append((value, True))
            todo.extend((one, False) for one in reversed(node.inputs) if one is not None)
    return Slice(tuple(nodes), tuple(inputs))


def values_by_name(nodes: Collection[ir.Node]) -> dict[str, ir.Value]:
    """Returns everything that ``nodes`` make."""
    return {str(value.name): value for node in nodes for value in node.outputs if value.name}
