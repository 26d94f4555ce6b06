"""Values computed from constants alone: runtimes fold them when they load the model."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx_ir as ir

from ..operands import all_graphs, all_nodes, subgraphs_of
from ..tensor_files import byte_size

_KEEPS_SHAPE = {"Identity", "Cast", "DequantizeLinear"}
# Ops whose output comes from some inputs only; the others say how. If elements are
# picked from a codebook, it is the indices that grow with the weight.
_FIRST = slice(0, 1)
_CARRYING = {
    "BitShift": _FIRST,
    "Expand": _FIRST,
    "Gather": _FIRST,
    "GatherElements": slice(1, 2),
    "Pad": _FIRST,
    "QLinearConv": _FIRST,
    "Reshape": _FIRST,
    "ScatterND": _FIRST,
    "Slice": _FIRST,
    "Squeeze": _FIRST,
    "Tile": _FIRST,
    "Unsqueeze": _FIRST,
}
_NEVER_FOLDED = {"RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}


class StaticValues:
    """The constants of a model and every value that depends on nothing else.

    Attributes:
        constants: Tensors of initializers and Constant nodes by value, in graph order.
    """

    def __init__(self, model: ir.Model) -> None:
        self.constants: dict[ir.Value, ir.TensorProtocol] = {}
        self._sources: dict[ir.Value, frozenset[ir.Value]] = {}
        self._carriers: dict[ir.Value, frozenset[ir.Value]] = {}
        self._dims: dict[ir.Value, tuple[int, ...]] = {}
        for graph in all_graphs(model.graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    self._add_constant(value, value.const_value)
        for node in all_nodes(model.graph):
            self._visit(node)

    def _add_constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        self.constants[value] = tensor
        self._sources[value] = self._carriers[value] = frozenset({value})
        self._dims[value] = tuple(int(dim) for dim in tensor.shape.numpy())

    def _visit(self, node: ir.Node) -> None:
        if node.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            if tensor is not None:
                self._add_constant(node.outputs[0], tensor)
            return
        given = [value for value in node.inputs if value is not None]
        if not given or node.op_type in _NEVER_FOLDED or any(subgraphs_of(node)):
            return
        if all(value in self._sources for value in given):
            carrying = given[_CARRYING.get(node.op_type, slice(None))]
            for value in node.outputs:
                self._sources[value] = frozenset().union(*(self._sources[v] for v in given))
                self._carriers[value] = frozenset().union(
                    *(self._carriers[v] for v in carrying)
                )
                self._dims[value] = self._dims_after(node, value)

    def _dims_after(self, node: ir.Node, value: ir.Value) -> tuple[int, ...]:
        first = node.inputs[0]
        dims = self._dims[first] if first is not None else ()
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm", list(reversed(range(len(dims)))))
            return tuple(dims[axis] for axis in perm)
        if node.op_type in _KEEPS_SHAPE or value.shape is None or not value.shape.is_static():
            return dims
        return tuple(int(dim) for dim in value.shape.numpy())

    def __contains__(self, value: ir.Value | None) -> bool:
        return value in self._sources

    def sources(self, value: ir.Value | None) -> list[ir.Value]:
        """Returns the constants that ``value`` is made of, largest first, if it is static."""
        return self._largest_first(self._sources, value)

    def carriers(self, value: ir.Value | None) -> list[ir.Value]:
        """Returns those of its sources whose contents ``value`` carries, largest first.

        Shapes, shifts and the like are sources too, but the output does not come from them.
        """
        return self._largest_first(self._carriers, value)

    def _largest_first(
        self, known: Mapping[ir.Value, frozenset[ir.Value]], value: ir.Value | None
    ) -> list[ir.Value]:
        found = known.get(value, frozenset()) if value is not None else frozenset()
        return sorted(found, key=lambda one: (-self.size(one), str(one.name)))

    def dims(self, value: ir.Value) -> tuple[int, ...]:
        """Returns the shape of a static value, as far as the graph tells."""
        return self._dims[value]

    def size(self, constant: ir.Value) -> int:
        """Returns the bytes of a constant in the file."""
        tensor = self.constants[constant]
        if tensor.dtype == ir.DataType.STRING:
            return int(tensor.nbytes)
        return byte_size(tensor.dtype, tensor.size)

    def folded_size(self, value: ir.Value) -> int:
        """Returns the bytes of a static value once it has been computed."""
        if value in self.constants:
            return self.size(value)
        return byte_size(self.dtype(value), prod(self.dims(value)))

    def dtype(self, value: ir.Value) -> ir.DataType:
        """Returns the type of a static value, as far as the graph tells."""
        dtype = value.dtype
        node = value.producer()
        if node is not None and node.op_type == "Cast":
            dtype = ir.DataType(node.attributes.get_int("to"))
        if dtype is None or dtype == ir.DataType.STRING:
            dtype = self.constants[self.sources(value)[0]].dtype
        return dtype
