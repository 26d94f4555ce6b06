"""Values computed from constants alone: runtimes fold them when they load the model."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx
import onnx_ir as ir

from ..operands import all_graphs, all_nodes, cast_type, subgraphs_of
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
_LARGEST_ARGUMENT = 64  # elements of a constant that shape inference may look at
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
        self._dims: dict[ir.Value, tuple[int, ...] | None] = {}
        self._dtypes: dict[ir.Value, ir.DataType] = {}
        self._opsets = dict(model.opset_imports)
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

    def _dims_after(self, node: ir.Node, value: ir.Value) -> tuple[int, ...] | None:
        first = node.inputs[0] if node.inputs else None
        dims = self._dims[first] if first is not None else None
        if node.op_type in ("Identity", "Transpose") and first in self._dtypes:
            self._dtypes[value] = self._dtypes[first]
        if node.op_type == "Transpose" and not node.domain and dims is not None:
            perm = node.attributes.get_ints("perm", list(reversed(range(len(dims)))))
            return tuple(dims[axis] for axis in perm) if len(perm) == len(dims) else None
        if node.op_type in _KEEPS_SHAPE and dims is not None:
            return dims
        if value.shape is not None and value.shape.is_static():
            return tuple(int(dim) for dim in value.shape.numpy())
        return self._inferred(node, value)

    def _inferred(self, node: ir.Node, value: ir.Value) -> tuple[int, ...] | None:
        """Asks onnx what the node gives; its type is remembered, its shape returned."""
        types = {
            str(one.name): onnx.helper.make_tensor_type_proto(
                int(self.dtype(one)), self._dims[one]
            )
            for one in node.inputs
            if one is not None
        }
        data = {
            str(one.name): ir.to_proto(self.constants[one])
            for one in node.inputs
            if one in self.constants and self.constants[one].size <= _LARGEST_ARGUMENT
        }
        try:
            opset = self._opsets[node.domain]
            imports = [onnx.helper.make_opsetid(node.domain, opset)]
            schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
            made = onnx.shape_inference.infer_node_outputs(
                schema, ir.to_proto(node), types, data, opset_imports=imports
            )[str(value.name)].tensor_type
        except Exception:  # an operator without a schema, or one that contradicts its own
            return None
        if made.elem_type:
            self._dtypes[value] = ir.DataType(made.elem_type)
        dims = made.shape.dim
        known = made.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
        return tuple(dim.dim_value for dim in dims) if known else None

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

    def dims(self, value: ir.Value) -> tuple[int, ...] | None:
        """Returns the shape of a static value, or None when the graph does not tell."""
        return self._dims[value]

    def size(self, constant: ir.Value) -> int:
        """Returns the bytes of a constant in the file."""
        tensor = self.constants[constant]
        if tensor.dtype == ir.DataType.STRING:
            return int(tensor.nbytes)
        return byte_size(tensor.dtype, tensor.size)

    def folded_size(self, value: ir.Value) -> int:
        """Returns the bytes of a static value once it has been computed.

        Without a known shape, those of the constants that it carries.
        """
        dims, dtype = self.dims(value), self.dtype(value)
        if value in self.constants or dims is None or dtype == ir.DataType.STRING:
            return sum(self.size(one) for one in self.carriers(value))
        return byte_size(dtype, prod(dims))

    def dtype(self, value: ir.Value) -> ir.DataType:
        """Returns the type of a static value, as far as the graph tells."""
        if value in self.constants:
            return self.constants[value].dtype
        known = value.dtype or self._dtypes.get(value)
        node = value.producer()
        if node is not None and node.op_type == "Cast" and not node.domain:
            known = cast_type(node) or known
        return known or self.constants[self.sources(value)[0]].dtype
