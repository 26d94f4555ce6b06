"""Attention as exporters write it: MatMul, a mask, Softmax, MatMul.

::

    %scores  = MatMul(%queries, %keys)         [..., heads, tokens, size] x [..., size, tokens]
    %bent    = Mul, Div, Add, Where, ...       scale, mask, position bias, soft cap
    %weights = Softmax(%bent)
    %mixed   = MatMul(%weights, %values)       possibly after Cast, Dropout, Where
    %output  = MatMul(Reshape(Transpose(%mixed)), @output)
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from ...units import stored_tensor
from .binding import Attention, NoMatchError, Operand, Projection
from .surroundings import Surroundings, is_causal, label, rotation

# What may stand between the scores and their softmax.
_BENDS = {
    *("Add", "Cast", "Clip", "Div", "Expand", "Identity", "Max", "Min", "Mul", "Reshape"),
    *("Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where"),
}
# What may stand between the softmax and the product with the values.
_KEEPS = {"Cast", "Dropout", "Identity", "IsNaN", "Mul", "Reshape", "Slice", "Where"}

# What leaves the last axis as long as it was.
_KEEP_SIZE = {
    *("Add", "Cast", "Div", "Dropout", "Expand", "Identity", "LayerNormalization", "Mul"),
    *("RMSNormalization", "RotaryEmbedding", "SimplifiedLayerNormalization", "Squeeze"),
    *("Sub", "Unsqueeze"),
}
_KEEP_SIZE_BEFORE = {"Gather": 4, "Split": 3}  # ... when they act on an earlier axis than this


def bind(softmax: ir.Node, around: Surroundings) -> Attention:
    """Binds the units around ``softmax``.

    Raises:
        NoMatchError: It is not an attention, or not one that can be described.
    """
    scores, bends = _scores(softmax, around)
    mix = _mix(softmax, around)
    queries, keys, values = scores.inputs[0], scores.inputs[1], mix.inputs[1]
    assert queries is not None
    assert keys is not None
    assert values is not None
    query, on_query = around.source(queries, "queries")
    key, on_key = around.source(keys, "keys")
    value, _ = around.linear_source(values, "values")
    output = around.mixer(mix.outputs[0])
    size, value_size = _size(queries, -1), _size(values, -1)
    heads = _whole(output.unit.shape[1], value_size, output)
    masks = [v for one in bends for v in _masks(one, around)]
    bent = [one for one in bends if one.op_type in ("Mul", "Div")]
    scales = [around.scale(one) for one in (bent, on_query, on_key)]
    return Attention(
        node=softmax,
        query=query,
        key=key,
        value=value,
        output=output,
        operands=(
            Operand(queries, "heads", heads),
            Operand(keys, "transposed", heads),
            Operand(values, "heads", heads),
        ),
        heads=heads,
        kv_heads=_kv_heads((query, key, value), heads, size, value_size),
        head_size=size,
        value_size=value_size,
        scale=None if None in scales else prod(one for one in scales if one is not None),
        causal=any(is_causal(one) for one in masks),
        masked=bool(masks),
        rope=rotation(on_query),
    )


def _scores(softmax: ir.Node, around: Surroundings) -> tuple[ir.Node, list[ir.Node]]:
    """Returns the product of queries and keys, and the nodes between it and the softmax."""
    found: dict[ir.Node, None] = {}
    bends: dict[ir.Node, None] = {}
    todo = [softmax.inputs[0]]
    while todo:
        value = todo.pop()
        node = value.producer() if value is not None else None
        if node is None or node in bends:
            continue
        if node.op_type == "MatMul" and len(around.streamed(node)) == 2:
            found[node] = None
        elif node.op_type in _BENDS:
            bends[node] = None
            todo += around.streamed(node)
    if not found:
        raise NoMatchError("it weighs no product of two activations")
    if len(found) > 1:
        raise NoMatchError(f"its scores add up {len(found)} products of activations")
    return next(iter(found)), list(bends)


def _mix(softmax: ir.Node, around: Surroundings) -> ir.Node:
    """Returns the product of weights and values."""
    found: dict[ir.Node, ir.Value] = {}
    seen: set[ir.Node] = set()
    todo = list(softmax.outputs)
    while todo:
        value = todo.pop()
        for node in value.consumers():
            if node.op_type == "MatMul" and len(around.streamed(node)) == 2:
                found[node] = value
            elif node.op_type in _KEEPS and node not in seen:
                seen.add(node)
                todo += node.outputs
    if len(found) != 1:
        raise NoMatchError(f"its result multiplies {len(found)} activations, not one")
    node, value = next(iter(found.items()))
    if node.inputs[0] is not value:
        raise NoMatchError(f"{label(node)} multiplies it from the right")
    return node


def _masks(node: ir.Node, around: Surroundings) -> list[ir.Value]:
    """Returns what a node adds to the scores, or chooses between them and something else."""
    if node.op_type == "Where" and node.inputs[0] is not None:
        return [node.inputs[0]]
    if node.op_type in ("Add", "Sub"):
        return [one for one in node.inputs if one is not None and not around.in_stream(one)]
    return []


def _size(value: ir.Value, axis: int) -> int:
    """Returns the length of an axis, from the shape or from the Reshape that made it."""
    one: ir.Value | None = value
    while one is not None:
        if one.shape is not None and len(one.shape) and isinstance(one.shape[axis], int):
            return int(one.shape[axis])  # type: ignore[arg-type]
        node = one.producer()
        if node is not None and node.op_type == "Reshape":
            return _entry(node.inputs[1])
        one, axis = (None if node is None else _same_size(node)), -1
    raise NoMatchError("the graph does not tell the size of its heads")


def _same_size(node: ir.Node) -> ir.Value | None:
    """Returns the input whose last axis is as long as that of the output, if one is."""
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm", [])
        return node.inputs[0] if perm and perm[-1] == len(perm) - 1 else None
    if not _keeps_size(node):
        return None
    given = (one for one in node.inputs if one is not None and stored_tensor(one) is None)
    return next(given, None)


def _keeps_size(node: ir.Node) -> bool:
    before = _KEEP_SIZE_BEFORE.get(node.op_type, 0)
    return node.op_type in _KEEP_SIZE or 0 <= node.attributes.get_int("axis", 0) < before


def _entry(shape: ir.Value | None) -> int:
    """Returns the last entry of a shape that a graph computes, if it is a constant."""
    while shape is not None and (node := shape.producer()) is not None:
        if node.op_type != "Concat":
            break
        shape = node.inputs[-1]
    tensor = stored_tensor(shape) if shape is not None else None
    if tensor is None or not tensor.size or int(tensor.numpy().reshape(-1)[-1]) < 1:
        raise NoMatchError("the graph does not tell the size of its heads")
    return int(tensor.numpy().reshape(-1)[-1])


def _whole(channels: int, size: int, where: Projection) -> int:
    if channels % size:
        raise NoMatchError(
            f"{channels} channels of {where.unit.name!r} do not divide into heads of {size}"
        )
    return channels // size


def _kv_heads(
    made: tuple[Projection, Projection, Projection], heads: int, size: int, value_size: int
) -> int:
    """Returns how many key and value heads the rows of the units leave room for."""
    query, key, value = made
    rows = value.unit.shape[0]
    if value == query:
        rows -= heads * size
    per_head = value_size + (size if value == key else 0)
    if rows <= 0 or rows % per_head or heads % (rows // per_head):
        raise NoMatchError(
            f"{value.unit.shape[0]} rows of {value.unit.name!r} do not divide into key and"
            f" value heads of {size} beside {heads} heads"
        )
    return rows // per_head
