"""What checks ask about a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from ...ir import all_graphs, all_nodes
from ...ir.analysis.static_values import StaticValues
from ...ir.operands import cast_type

STANDARD = ("", "ai.onnx")
CONTRIB = "com.microsoft"
UNSIGNED = {ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.UINT2, ir.DataType.UINT16}
FOUR_BITS = {ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT4E2M1}
TWO_BITS = {ir.DataType.INT2, ir.DataType.UINT2}
Broken = Iterator[tuple[ir.Node | None, str]]
Check = Callable[["View"], Broken]


@dataclass(frozen=True)
class View:
    """A graph with what can be known of its values.

    Attributes:
        model: The graph.
        nodes: All nodes, those of branches and loops too.
        static: Constants and what is made of them.
        size: Bytes of the files.
    """

    model: ir.Model
    nodes: tuple[ir.Node, ...]
    static: StaticValues
    size: int

    @classmethod
    def of(cls, model: ir.Model, size: int) -> View:
        """Looks at a graph without functions."""
        return cls(model, tuple(all_nodes(model.graph)), StaticValues(model), size)

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return self.model.opset_imports.get("", self.model.opset_imports.get("ai.onnx", 1))

    @cached_property
    def _taken(self) -> set[str | None]:
        graphs = list(all_graphs(self.model.graph))
        values = [value for node in self.nodes for value in node.outputs]
        values += [value for graph in graphs for value in graph.inputs]
        values += [value for graph in graphs for value in graph.initializers.values()]
        return {value.name for value in values}

    def free(self, wanted: str) -> str:
        """Reserves and returns a name that no value has."""
        name, at = wanted, 1
        while name in self._taken:
            name, at = f"{wanted}_{at}", at + 1
        self._taken.add(name)
        return name

    def standard(self, *op_types: str) -> Iterator[ir.Node]:
        """Yields the nodes of standard operators."""
        return (
            one for one in self.nodes if one.op_type in op_types and one.domain in STANDARD
        )

    def contrib(self, *op_types: str) -> Iterator[ir.Node]:
        """Yields the nodes of ONNX Runtime's own operators."""
        return (one for one in self.nodes if one.op_type in op_types and one.domain == CONTRIB)

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """Returns a stored constant that no caller can replace; None if there is none."""
        while (node := maker(value, "Identity")) is not None:
            value = node.inputs[0]
        if value is None or value not in self.static.constants or value.is_graph_input():
            return None
        return np.asarray(self.static.constants[value].numpy())

    def knows(self, value: ir.Value | None) -> bool:
        """Tells whether an input is a stored constant, or absent."""
        return value is None or self.array(value) is not None

    def numbers(self, value: ir.Value | None) -> np.ndarray | None:
        """Returns a constant as float64, also behind a Cast; None if there is none."""
        node = maker(value, "Cast")
        array = self.array(value if node is None else node.inputs[0])
        return None if array is None else array.astype(np.float64)

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Returns the type of a value, as far as the graph tells."""
        if value is None:
            return None
        if value in self.static:
            return self.static.dtype(value)
        cast = maker(value, "Cast")
        return value.dtype or (cast_type(cast) if cast is not None else None)

    def dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Returns the shape of a value; None where some of it is open."""
        if value is None:
            return None
        if value in self.static:
            return self.static.dims(value)
        if value.shape is None or not value.shape.is_static():
            return None
        return tuple(int(dim) for dim in value.shape.numpy())

    def codes_type(self, node: ir.Node) -> ir.DataType | None:
        """Returns the type of the codes of a QuantizeLinear or DequantizeLinear."""
        if node.op_type == "DequantizeLinear":
            rounding = maker(node.inputs[0], "QuantizeLinear")
            return (
                self.dtype(node.inputs[0]) if rounding is None else self.codes_type(rounding)
            )
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        given = whole(node, "output_dtype", 0)
        if zero is None:
            return _data_type(given) if given else ir.DataType.UINT8
        return self.dtype(zero)

    def is_weight(self, dequantize: ir.Node) -> bool:
        """Tells whether a DequantizeLinear reads constant codes."""
        return dequantize.inputs[0] in self.static


def _data_type(number: int) -> ir.DataType | None:
    try:
        return ir.DataType(number)
    except ValueError:  # the file says what there is not
        return None


def whole(node: ir.Node, name: str, default: int) -> int:
    """Returns an attribute that is a whole number; the default where it is none."""
    attribute = node.attributes.get(name)
    if attribute is None or attribute.type is not ir.AttributeType.INT:
        return default
    return attribute.as_int()


def given(node: ir.Node, index: int) -> ir.Value | None:
    """Returns an input of a node; None if it has none there."""
    return node.inputs[index] if index < len(node.inputs) else None


def maker(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Returns what makes a value, if it is one of these operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types else None


def readers(value: ir.Value) -> list[ir.Node]:
    """Returns the nodes that read a value, each once."""
    return list(dict.fromkeys(usage.node for usage in value.uses()))
