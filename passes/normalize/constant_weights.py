"""Weights that a graph puts together from constants become plain initializers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from ...ir import FLOAT_TYPES, all_nodes
from ...ir.analysis.static_values import StaticValues
from ...ir.unit_search import is_view, multiplies
from ...ir.units import SMALLEST_UNIT, stored_tensor
from ..engine.emission.emitter import Names, store
from ..engine.validation.slices import slice_of

# What exporters and quantizers put weights together with.
_FOLDED = {
    *("Add", "Cast", "Concat", "Constant", "Div", "Flatten", "Identity", "Mul"),
    *("Reshape", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze"),
}
_MOST_GROWTH = 8  # float32 numbers of 4-bit codes; more is no way to store a weight


@dataclass(frozen=True)
class _Expression:
    """A float value made of constants.

    Attributes:
        value: What running nodes read.
        nodes: What makes it, in execution order.
    """

    value: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def sources(self) -> list[ir.Value]:
        """The constants that it is made of."""
        made = {value for node in self.nodes for value in node.outputs}
        given = (value for node in self.nodes for value in node.inputs if value is not None)
        return [one for one in dict.fromkeys(given) if one not in made]


def fold_weights(model: ir.Model) -> bool:
    """Computes constant expressions that weights may be, and stores what they give.

        %w = Concat(@a, @b)  %y = MatMul(%x, %w)    =>    %y = MatMul(%x, @w)

    Views of one constant stay, because they let several readers share it.
    """
    found, names = list(_expressions(model)), Names(model)
    for one in found:
        weight = store(
            model.graph, names.free(f"{one.value.name}/folded"), _computed(model, one)
        )
        one.value.replace_all_uses_with(weight)
    return bool(found)


def _expressions(model: ir.Model) -> Iterator[_Expression]:
    static = StaticValues(model)
    seen: set[ir.Value] = set()
    for node in all_nodes(model.graph):
        if all(value in static for value in node.outputs):
            continue
        for at, value in enumerate(node.inputs):
            if value is None or value in seen or value not in static:
                continue
            if not multiplies(node, at):
                continue
            seen.add(value)
            one = _Expression(value, slice_of(value, lambda other: False).nodes)
            if _is_weight(one, static):
                yield one


def _is_weight(one: _Expression, static: StaticValues) -> bool:
    """Tells whether an expression gives a matrix of floats, by means that are well known."""
    dims, dtype = static.dims(one.value), static.dtype(one.value)
    if dims is None or len(dims) < 2 or prod(dims) < SMALLEST_UNIT or dtype not in FLOAT_TYPES:
        return False
    known = all(n.op_type in _FOLDED and n.domain in ("", "ai.onnx") for n in one.nodes)
    if one.value.is_graph_output() or not known:
        return False
    if all(is_view(node) or node.op_type == "Constant" for node in one.nodes):
        return False  # a view
    given = sum(static.size(source) for source in static.sources(one.value))
    return prod(dims) * dtype.itemsize <= _MOST_GROWTH * given


def _computed(model: ir.Model, one: _Expression) -> np.ndarray:
    """Returns the numbers that an expression gives."""
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in one.nodes],
        "weight",
        [],
        [onnx.helper.make_empty_tensor_value_info(str(one.value.name))],
        [_proto(source) for source in one.sources],
    )
    opsets = [onnx.helper.make_opsetid("", model.opset_imports.get("", 1))]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    (made,) = ReferenceEvaluator(proto).run(None, {})
    return np.ascontiguousarray(made)


def _proto(source: ir.Value) -> onnx.TensorProto:
    tensor = stored_tensor(source)
    assert tensor is not None
    proto = ir.to_proto(tensor)
    proto.name = str(source.name)
    return proto
