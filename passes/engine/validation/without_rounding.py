"""A graph as it would compute without rounding its activations.

What rounded activations cost is no mistake of a pass; ``verify-numerics`` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ....ir import inline_functions

_FLOAT = ir.DataType.FLOAT
_LSTM_INPUTS = 8  # of the float operator
_LSTM_SCALES = {1: 8, 2: 10}  # by input of codes: that of their scales


def without_rounding(model: ir.Model) -> ir.Model:
    """Returns the graph with exact activations; itself where it rounds none.

    - Whoever reads a DequantizeLinear behind a QuantizeLinear of an activation reads that.
    - A MatMulInteger behind a DynamicQuantizeLinear multiplies the activation itself.
    - A DynamicQuantizeLSTM becomes an LSTM of the weights that its codes stand for.
    """
    graph = model.graph
    rounds = _rounded(graph) or _dynamic(graph) or _recurrent(graph)
    if not model.functions and not rounds:
        return model
    copy = model.clone()
    inline_functions(copy)
    for rounded, exact in _rounded(copy.graph).items():
        rounded.replace_all_uses_with(exact)
    for node, rounding in _dynamic(copy.graph).items():
        _compute_in_floats(copy.graph, node, rounding)
    for node in _recurrent(copy.graph):
        _recur_in_floats(copy.graph, node)
    return copy


def _rounded(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Maps what DequantizeLinear makes of a rounded activation to the activation itself."""
    found = {}
    for node in graph:
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
            continue
        rounding = node.inputs[0].producer()
        if rounding is not None and rounding.op_type == "QuantizeLinear":
            exact = rounding.inputs[0]
            if exact is not None and exact.const_value is None:
                found[node.outputs[0]] = exact
    return found


def _dynamic(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """Maps products of integers to what rounds their activations as they come."""
    found = {}
    for node in graph:
        rounding = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        dynamic = rounding is not None and rounding.op_type == "DynamicQuantizeLinear"
        if node.op_type == "MatMulInteger" and rounding is not None and dynamic:
            found[node] = rounding
    return found


def _compute_in_floats(graph: ir.Graph, node: ir.Node, rounding: ir.Node) -> None:
    """Replaces a product of integers by one of the activation in steps of its codes.

    The weight has no zero points.
    """
    ratio = _made("Div", [rounding.inputs[0], rounding.outputs[1]])
    wide = _made("Cast", [node.inputs[1]], {"to": int(_FLOAT)})
    product = _made("MatMul", [ratio.outputs[0], wide.outputs[0]])
    product.metadata_props.update(node.metadata_props)
    result = product.outputs[0]
    result.name, result.shape = node.outputs[0].name, node.outputs[0].shape
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [ratio, wide, product], node.outputs, [result]
    )


def _recurrent(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "DynamicQuantizeLSTM"]


def _recur_in_floats(graph: ir.Graph, node: ir.Node) -> None:
    """Replaces an LSTM of integers, whose codes are directions x columns x rows."""
    nodes, inputs = [], list(node.inputs[:_LSTM_INPUTS])
    for at, scales in _LSTM_SCALES.items():
        wide = _made("Cast", [node.inputs[at]], {"to": int(_FLOAT)})
        turned = _made("Transpose", wide.outputs, {"perm": [0, 2, 1]})
        axis = ir.Value(name=f"{node.name}/axis/{at}", const_value=ir.tensor([-1]))
        graph.register_initializer(axis)
        column = _made("Unsqueeze", [node.inputs[scales], axis])
        weight = _made("Mul", [turned.outputs[0], column.outputs[0]])
        nodes += [wide, turned, column, weight]
        inputs[at] = weight.outputs[0]
    outputs = [
        ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs
    ]
    made = ir.Node("", "LSTM", inputs, node.attributes.values(), outputs=outputs)
    made.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [*nodes, made], node.outputs, outputs
    )


def _made(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | Sequence[int]] | None = None,
) -> ir.Node:
    output = ir.Value(type=ir.TensorType(_FLOAT))
    return ir.node(op_type, inputs, attributes or {}, outputs=[output])
