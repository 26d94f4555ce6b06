"""Gives nodes float16 instead of float32, with Casts where one kind meets the other."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ...ir import BlockId, all_nodes, annotate, note_of
from ..engine.emission.emitter import Names, store
from .carried import carried
from .rounding import as_half
from .typing_rules import is_float32, makes_float32, stays_float32

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
# Of operators whose result has that type.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype")
_TENSOR_ATTRIBUTES = ("value",)


class Conversion:
    """One conversion of a graph.

    Attributes:
        casts: How many Casts it took.
    """

    def __init__(self, model: ir.Model, low: Collection[ir.Node]) -> None:
        """Prepares to convert.

        Args:
            model: The graph.
            low: The nodes of its main graph that are to compute in float16.
        """
        self.casts = 0
        self._graph = model.graph
        self._opset = model.opset_imports.get("", 1)
        self._low = set(low)
        self._names = Names(model)
        self._made: set[ir.Value] = set()  # by them, what was float32 before
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        """Converts the graph. Its inputs and outputs keep their types, but caches do not."""
        caches = carried(self._graph, self._low)
        for before, _ in caches:
            before.type = ir.TensorType(_HALF)
            self._made.add(before)
        nodes = list(all_nodes(self._graph))
        for node in nodes:
            if node in self._low:
                self._retype(node)
        for node in nodes:
            for at, value in enumerate(node.inputs):
                self._feed(node, at, value)
        self._restore_outputs({after for _, after in caches})
        self._drop_useless_casts()
        self._drop_unread_constants()

    def _retype(self, node: ir.Node) -> None:
        """Lets a node make float16."""
        for name in _TYPE_ATTRIBUTES:
            if node.attributes.get_int(name, 0) == int(_FLOAT):
                node.attributes[name] = ir.AttrInt64(name, int(_HALF))
        for name in _TENSOR_ATTRIBUTES:
            attribute = node.attributes.get(name)
            if attribute is None or attribute.type != ir.AttributeType.TENSOR:
                continue
            tensor = attribute.as_tensor()
            if tensor.dtype == _FLOAT:
                half = ir.Tensor(as_half(tensor.numpy()), name=tensor.name)
                node.attributes[name] = ir.AttrTensor(name, half)
        for at, value in enumerate(node.outputs):
            if is_float32(value) and not makes_float32(node, at, self._opset):
                value.type = ir.TensorType(_HALF)
                self._made.add(value)

    def _feed(self, node: ir.Node, at: int, value: ir.Value | None) -> None:
        """Gives an input of a node the type in which the node computes."""
        if value is None or value.dtype not in (_FLOAT, _HALF):
            return
        if node in self._low:
            wanted = _FLOAT if stays_float32(node, at, self._opset) else _HALF
            if node.op_type == "Cast":
                return  # which reads anything
        elif value in self._made:
            wanted = _FLOAT
        else:
            return
        if value.dtype != wanted:
            node.replace_input_with(at, self._as(value, wanted))

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Returns the value in another type: a constant of it, or what a Cast makes."""
        key = (value, dtype)
        if key not in self._cast:
            constant = value.is_initializer() and not value.is_graph_input()
            self._cast[key] = (
                self._constant(value, dtype) if constant else self._node(value, dtype)
            )
        return self._cast[key]

    def _constant(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        array = value.const_value.numpy()
        made = as_half(array) if dtype == _HALF else array.astype(np.float32)
        return store(self._graph, self._names.free(f"{value.name}/{_word(dtype)}"), made)

    def _node(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = self._names.free(f"{value.name}/{_word(dtype)}")
        made = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
        cast = ir.node("Cast", [value], {"to": int(dtype)}, outputs=[made], name=name)
        producer = value.producer()
        if producer is None or producer.graph is not self._graph:
            self._graph.insert_before(self._graph[0], cast)
        else:
            block = note_of(producer, BlockId)
            if block is not None:
                annotate(cast, block)
            self._graph.insert_after(producer, cast)
        self.casts += 1
        return made

    def _restore_outputs(self, caches: Collection[ir.Value]) -> None:
        """Gives the outputs of the model the type and the name that they had."""
        for at, value in enumerate(list(self._graph.outputs)):
            if value not in self._made or value in caches:
                continue
            name, inner = str(value.name), self._names.free(f"{value.name}/float16")
            wide = self._as(value, _FLOAT)
            value.name = inner
            wide.name = name
            self._graph.outputs[at] = wide

    def _drop_useless_casts(self) -> None:
        """Removes Casts from a type to itself."""
        for node in list(self._graph):
            value = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
            made = node.outputs[0] if node.outputs else None
            if value is None or made is None or value.dtype != made.dtype:
                continue
            if made.is_graph_output() or value.dtype is None:
                continue
            made.replace_all_uses_with(value)
            self._graph.remove(node, safe=True)

    def _drop_unread_constants(self) -> None:
        """Removes constants that only their float16 form is read of, which takes the name."""
        for (value, _), half in self._cast.items():
            if not value.is_initializer() or value.uses() or value.is_graph_output():
                continue
            name = str(value.name)
            self._graph.initializers.pop(name)
            self._graph.initializers.pop(str(half.name))
            half.name = name
            self._graph.register_initializer(half)


def _word(dtype: ir.DataType) -> str:
    return "float16" if dtype == _HALF else "float32"
