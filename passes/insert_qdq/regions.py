"""Where activations are rounded so that convolutions and their neighbours compute in integers.

A runtime makes an integer kernel of a node that reads nothing but what DequantizeLinear made,
if its result goes to QuantizeLinear alone::

    Conv -> Relu -> (round) -> MaxPool -> (round) -> Conv -> (round) -> Add -> (round) -> Conv

So the result of every convolution is rounded, behind an activation function that rounding
absorbs, and everybody reads the rounded one. Additions, pools and the like follow where all
that they read is rounded already and a convolution reads what comes of it. What only moves
values keeps their grid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

_ABSORBED = {"Relu", "Clip"}  # their bounds are those of the codes
_OWN_GRID = {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}
_SAME_GRID = {
    *("MaxPool", "Resize", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice")
}
_SLOW_POOL = 125  # conversions that take as long as a pool of codes outside integer kernels
_ALL_INPUTS = {"Add", "Mul", "Concat"}


def integer_convolutions(
    graph: ir.Graph, convolutions: Collection[ir.Node]
) -> tuple[list[ir.Node], dict[ir.Value, ir.Value]]:
    """Returns the convolutions that can compute in integers, and what is rounded for them.

    Args:
        graph: The graph.
        convolutions: Nodes that an integer kernel could serve.

    Returns:
        Those whose result is no output of the model, which nobody rounds. By rounded value, in
        the order of execution: the value whose grid it takes.
    """
    able = [
        node
        for node in graph
        if node in convolutions and not _result(node.outputs[0]).is_graph_output()
    ]
    return able, _rounded(graph, able)


def without_moved_codes(graph: ir.Graph, convolutions: Collection[ir.Node]) -> list[ir.Node]:
    """Returns the convolutions none of whose rounded activations is moved as a float.

    ONNX Runtime rounds what a Reshape or a Transpose makes of codes once more. If codes are
    int8 and the opset is 21 or newer, it then refuses its own node (1.31.1, on processors for
    which it turns int8 into uint8).
    """
    left, before = list(convolutions), len(convolutions) + 1
    while len(left) < before:
        before = len(left)
        able, rounded = integer_convolutions(graph, left)
        moved = {value for value in rounded if _is_moved(value, rounded)}
        left = [
            node
            for node in able
            if node.inputs[0] not in moved and rounded_result(node) not in moved
        ]
    return left


def _is_moved(value: ir.Value, rounded: Collection[ir.Value]) -> bool:
    readers = (usage.node for usage in value.uses())
    return any(one.op_type in _SAME_GRID and one.outputs[0] not in rounded for one in readers)


def _rounded(graph: ir.Graph, convolutions: Collection[ir.Node]) -> dict[ir.Value, ir.Value]:
    useful = _useful(graph, convolutions)
    grids: dict[ir.Value, ir.Value] = {}
    for node in graph:
        if node in convolutions:
            read, made = node.inputs[0], _result(node.outputs[0])
            assert read is not None
            grids.setdefault(read, read)
            grids.setdefault(made, made)
        elif _follows(node, grids) and _result(node.outputs[0]) in useful:
            if node.op_type in _SAME_GRID:
                grids.setdefault(node.outputs[0], grids[_data(node)[0]])
            else:
                made = _result(node.outputs[0])
                grids.setdefault(made, made)
    return grids


def _useful(graph: ir.Graph, convolutions: Collection[ir.Node]) -> set[ir.Value]:
    """Returns the values that a convolution reads, or that make what it reads."""
    useful: set[ir.Value] = set()
    for node in reversed(list(graph)):
        if node in convolutions:
            useful.update(value for value in node.inputs[:1] if value is not None)
        elif node.op_type in _OWN_GRID | _SAME_GRID and _result(node.outputs[0]) in useful:
            useful.update(_data(node))
    return useful


def _follows(node: ir.Node, grids: Mapping[ir.Value, ir.Value]) -> bool:
    """Tells whether a node can compute in integers because all that it reads is rounded."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _OWN_GRID | _SAME_GRID:
        return False
    result = _result(node.outputs[0])
    data = _data(node)
    return bool(data) and all(one in grids for one in data) and not result.is_graph_output()


def _data(node: ir.Node) -> list[ir.Value]:
    """Returns the inputs of a node that are activations."""
    count = len(node.inputs) if node.op_type in _ALL_INPUTS else 1
    return [value for value in node.inputs[:count] if value is not None]


def conversions(
    convolutions: Collection[ir.Node], rounded: Collection[ir.Value]
) -> dict[ir.Value, int]:
    """Returns how often each rounded activation turns from floats to codes or back.

    What an integer kernel makes is codes already, and what only such kernels read stays codes.
    What a MaxPool makes of floats counts many times: ONNX Runtime rounds before it instead,
    and its pool of codes is slow unless an integer convolution stands before it.

    Args:
        convolutions: Those that compute in integers.
        rounded: The activations that are rounded for them.
    """
    results = {rounded_result(node) for node in convolutions}
    results |= {value for value in rounded if _made_of(value, rounded)}

    def stays(node: ir.Node) -> bool:
        follows = node.op_type in _OWN_GRID | _SAME_GRID
        return node in convolutions or (follows and _result(node.outputs[0]) in results)

    def rounding(value: ir.Value) -> int:
        if value in results:
            return 0
        node = value.producer()
        return _SLOW_POOL if node is not None and node.op_type == "MaxPool" else 1

    return {
        value: rounding(value) + any(not stays(usage.node) for usage in value.uses())
        for value in rounded
    }


def _made_of(value: ir.Value, rounded: Collection[ir.Value]) -> bool:
    """Tells whether a node that computes in integers like a convolution's makes a value."""
    node = value.producer()
    while node is not None and node.op_type in _ABSORBED:
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    if node is None or node.op_type not in _OWN_GRID | _SAME_GRID:
        return False
    return all(one in rounded for one in _data(node))


def rounded_result(convolution: ir.Node) -> ir.Value:
    """Returns what is rounded of a convolution's result."""
    return _result(convolution.outputs[0])


def _result(value: ir.Value) -> ir.Value:
    """Returns what is made of a value by functions that rounding absorbs."""
    while not value.is_graph_output():
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type not in _ABSORBED or uses[0].idx != 0:
            break
        node = value.producer()
        if node is None or uses[0].node.graph is not node.graph:  # in a branch or a loop
            break
        value = uses[0].node.outputs[0]
    return value
