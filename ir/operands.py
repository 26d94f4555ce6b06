"""The values that a node reads: its inputs and those that its subgraphs capture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir


def subgraphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    """Yields the graphs in the attributes of ``node``, without those nested inside them."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def cast_type(node: ir.Node) -> ir.DataType | None:
    """Returns the type that a Cast gives, if it says one; opsets before 6 spell it."""
    attribute = node.attributes.get("to")
    if attribute is None or attribute.is_ref():
        return None
    if attribute.type == ir.AttributeType.STRING:
        return ir.DataType.__members__.get(attribute.as_string().upper())
    return ir.DataType(attribute.as_int())


def all_nodes(graph: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Yields the nodes of ``graph`` and of all graphs nested in it, without recursion."""
    todo: list[Iterable[ir.Node]] = [graph]
    while todo:
        for node in todo.pop():
            yield node
            todo.extend(subgraphs_of(node))


def all_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yields ``graph`` and all graphs nested in it, without recursion."""
    todo = [graph]
    while todo:
        one = todo.pop()
        yield one
        for node in one:
            todo.extend(subgraphs_of(node))


def captures(node: ir.Node) -> list[ir.Value]:
    """Returns the values that the subgraphs of ``node`` read from the graphs around them."""
    inner = [graph for body in subgraphs_of(node) for graph in all_graphs(body)]
    if not inner:
        return []
    own: set[ir.Value] = set()
    for graph in inner:
        own.update(graph.inputs, graph.initializers.values())
        own.update(value for one in graph for value in one.outputs)
    read = [value for graph in inner for one in graph for value in one.inputs]
    read += [value for graph in inner for value in graph.outputs]
    return list(dict.fromkeys(v for v in read if v is not None and v not in own))


def operands(node: ir.Node) -> list[ir.Value]:
    """Returns every value that ``node`` needs: inputs that are there, then captures."""
    given = [value for value in node.inputs if value is not None]
    return list(dict.fromkeys([*given, *captures(node)])) if node.attributes else given


def read_by_subgraphs(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    """Maps captured values to the nodes of ``graph`` whose subgraphs read them."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        for value in captures(node):
            readers.setdefault(value, []).append(node)
    return readers
