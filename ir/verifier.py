"""The invariants of the annotated graph, checked before and after every pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from .annotation import Annotated, built, class_of, note_of
from .errors import InternalError, MpqcError
from .operands import operands, subgraphs_of
from .vocabulary import BlockId


def _where(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"


def _note_problems(target: Annotated, where: str) -> Iterator[str]:
    for key, text in target.metadata_props.items():
        cls = class_of(key)
        if cls is None:
            continue  # a note of a newer version: it cannot change the numbers of the graph
        try:
            built(cls.key, text)
        except (MpqcError, ValueError) as error:
            yield f"{where} carries a broken #{cls.key}: {error}"


def _initializer_problems(graph: ir.Graph) -> Iterator[str]:
    for name, value in graph.initializers.items():
        if value.const_value is None:
            yield f"initializer {name!r} has no value"
        if value.name != name:
            yield f"initializer {name!r} calls itself {value.name!r}"


class _Scopes:
    """Which values a place in a graph can see: earlier ones there, and those around it.

    Attributes:
        place: Index of every node in its graph.
        names: For every graph, its values by name: the file knows them by nothing else.
        around: For a nested graph, the graph that holds it and the index of the holding node.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.place: dict[ir.Node, int] = {}
        self.names: dict[ir.Graph, dict[str, ir.Value]] = {}
        self.around: dict[ir.Graph, tuple[ir.Graph, int]] = {}
        todo = [graph]
        while todo:
            one = todo.pop()
            self.names[one] = {str(value.name): value for value in _values(one)}
            for at, node in enumerate(one):
                self.place[node] = at
                for inner in subgraphs_of(node):
                    self.around[inner] = (one, at)
                    todo.append(inner)

    def problem(self, graph: ir.Graph, at: int, value: ir.Value) -> str:
        """Says why node number ``at`` of ``graph`` cannot read ``value``; empty if it can."""
        while True:
            found = self.names[graph].get(str(value.name))
            producer = value.producer()
            if found is value and (producer is None or self.place[producer] < at):
                return ""
            if found is value:
                return "before it is made"
            if found is not None:
                return "but another value has that name there"
            if graph not in self.around:
                return "which nothing around it defines"
            graph, at = self.around[graph]


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yields the values that ``graph`` itself defines."""
    yield from dict.fromkeys([*graph.inputs, *graph.initializers.values()])
    for node in graph:
        yield from node.outputs


def _node_problems(node: ir.Node, opsets: Mapping[str, int]) -> Iterator[str]:
    if not node.op_type:
        yield f"node {node.name!r} has no operator type"
    if node.domain not in opsets and not (node.domain == "ai.onnx" and "" in opsets):
        yield f"{_where(node)} needs operator set {node.domain!r}, which is not imported"
    yield from _note_problems(node, _where(node))


def _name_problems(graph: ir.Graph) -> Iterator[str]:
    owners: dict[str, ir.Value] = {}
    for value in _values(graph):
        if value.name and owners.setdefault(value.name, value) is not value:
            yield f"two values are called %{value.name}"
        if not value.name and (value.uses() or value.is_graph_output()):
            yield f"graph {graph.name!r} uses a value without a name"


def _graph_problems(graph: ir.Graph, opsets: Mapping[str, int]) -> Iterator[str]:
    scopes = _Scopes(graph)
    for one in scopes.names:
        yield from _name_problems(one)
        for at, node in enumerate(one):
            for value in node.inputs:
                if value is not None and (problem := scopes.problem(one, at, value)):
                    yield f"{_where(node)} reads %{value.name}, {problem}"
            yield from _node_problems(node, opsets)
        for value in one.outputs:
            if problem := scopes.problem(one, len(one), value):
                yield f"output %{value.name} of graph {one.name!r} is read, {problem}"
        yield from _initializer_problems(one)


def _block_problems(graph: ir.Graph) -> Iterator[str]:
    block = {
        node: note.index for node in graph if (note := note_of(node, BlockId)) is not None
    }
    for node, index in block.items():
        for value in operands(node):
            producer = value.producer()
            if producer is not None and block.get(producer, index) > index:
                yield f"{_where(node)} of block {index} depends on block {block[producer]}"


def problems(model: ir.Model) -> Iterator[str]:
    """Yields the problems of ``model``, one line each. Linear in its size."""
    yield from _note_problems(model, "the model")
    yield from _graph_problems(model.graph, model.opset_imports)
    for function in model.functions.values():
        opsets = {**model.opset_imports, **function.opset_imports}
        yield from _graph_problems(function.graph, opsets)
    yield from _block_problems(model.graph)


def verify(model: ir.Model) -> None:
    """Checks that ``model`` is a well-formed annotated graph.

    Raises:
        InternalError: Names the first node or value that breaks an invariant.
    """
    for problem in problems(model):
        raise InternalError(f"the graph is broken: {problem}")
