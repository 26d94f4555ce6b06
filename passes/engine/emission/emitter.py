"""Makes the nodes and initializers of a lowered unit, with unique names and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ....ir import BlockId, StoredPart, annotate, note_of

CONTRIB = "com.microsoft"
Attribute = int | float | str | Sequence[int]


class Names:
    """Hands out names that nothing in a model has yet."""

    def __init__(self, model: ir.Model) -> None:
        self.shared: dict[str, ir.Value] = {}  # constants that several units read
        self.derived: dict[ir.Value, tuple[ir.Value, ...]] = {}  # what several make of a value
        self._taken: set[str] = set()
        for node in model.graph.all_nodes():
            self._taken.add(str(node.name))
            self._taken.update(str(value.name) for value in node.outputs)
        self._taken.update(model.graph.initializers)
        self._taken.update(str(value.name) for value in model.graph.inputs)

    def free(self, wanted: str) -> str:
        """Reserves and returns ``wanted``, with a number after it if it is taken."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name


def store(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Stores ``array`` as the initializer ``name``, which must be free."""
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


class Emitter:
    """Collects the nodes that stand for a part of a unit, to be placed in the graph.

    Attributes:
        unit: Name of the unit; all names start with it.
        nodes: The nodes emitted so far.
    """

    def __init__(self, graph: ir.Graph, names: Names, unit: str, like: ir.Node) -> None:
        """Starts empty; new nodes belong to the block of ``like``."""
        self.unit = unit
        self.nodes: list[ir.Node] = []
        self._graph = graph
        self._names = names
        self._block = note_of(like, BlockId)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Stores ``array`` as the initializer ``<unit>/<name>`` of the graph."""
        return store(self._graph, self._names.free(f"{self.unit}/{name}"), array)

    def shared(self, name: str, array: np.ndarray) -> ir.Value:
        """Stores ``array`` as the initializer ``name``, once for all units of the graph."""
        known = self._names.shared
        if name not in known:
            known[name] = store(self._graph, self._names.free(name), array)
        return known[name]

    def once_behind(
        self, value: ir.Value, op_type: str, dtypes: Sequence[ir.DataType]
    ) -> tuple[ir.Value, ...]:
        """Returns what an operator makes of a value, by one node for all units of the graph.

        It stands right behind what makes the value, and belongs to its block.

        Args:
            value: Its only input.
            op_type: The operator; one for each value.
            dtypes: Types of its outputs.
        """
        derived = self._names.derived
        if value not in derived:
            producer = value.producer()
            name = self._names.free(f"{value.name}/{op_type}")
            outputs = [
                ir.Value(name=self._names.free(f"{name}/{at}"), type=ir.TensorType(dtype))
                for at, dtype in enumerate(dtypes)
            ]
            node = ir.node(op_type, [value], outputs=outputs, name=name)
            block = self._block if producer is None else note_of(producer, BlockId)
            if block is not None:
                annotate(node, block)
            if producer is None:
                self._graph.insert_before(self._graph[0], node)
            else:
                self._graph.insert_after(producer, node)
            derived[value] = tuple(outputs)
        return derived[value]

    def node(
        self,
        role: str | None,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """Emits a node, noted as playing ``role`` in storing the unit; returns its output."""
        full = self._names.free(f"{self.unit}/{name}")
        output = ir.Value(name=full, type=ir.TensorType(dtype) if dtype else None)
        node = ir.node(
            op_type, inputs, dict(attributes or {}), domain=domain, outputs=[output], name=full
        )
        if role is not None:
            annotate(node, StoredPart(self.unit, role))
        if self._block is not None:
            annotate(node, self._block)
        self.nodes.append(node)
        return output
