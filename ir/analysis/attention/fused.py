"""Attention as one operator: what its inputs and attributes say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt

import onnx_ir as ir

from .binding import Attention, Layout, NoMatchError, Operand
from .surroundings import Surroundings, rotation

_MICROSOFT = "com.microsoft"


def bind(node: ir.Node, around: Surroundings) -> Attention:
    """Binds the units around a fused operator.

    Raises:
        NoMatchError: Its projections are not units that can be quantized.
    """
    operands = _OPERANDS[_kind(node)](node)
    query, on_query = around.source(operands[0].value, "queries")
    key, _ = around.source(operands[1].value, "keys")
    value, _ = around.linear_source(operands[2].value, "values")
    output = around.mixer(node.outputs[0])
    heads, kv_heads = operands[0].heads, operands[2].heads
    columns = output.unit.shape[1]
    if columns % heads:
        raise NoMatchError(
            f"{columns} channels of {output.unit.name!r} do not divide into {heads} heads"
        )
    value_size = columns // heads
    size = _head_size(node, operands[0], query.unit.shape[0], value_size)
    turned = node.attributes.get_int("do_rotary", 0)
    return Attention(
        node=node,
        query=query,
        key=key,
        value=value,
        output=output,
        operands=operands,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        value_size=value_size,
        scale=node.attributes.get_float("scale", 0.0) or 1 / sqrt(size),
        causal=_is_causal(node),
        masked=any(_input(node, at) is not None for at in _MASKS[_kind(node)]),
        rope="fused" if turned else rotation(on_query),
    )


def _kind(node: ir.Node) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


def is_fused(node: ir.Node) -> bool:
    """Tells whether ``node`` is an attention in one operator."""
    return _kind(node) in _OPERANDS


def _input(node: ir.Node, at: int) -> ir.Value | None:
    return node.inputs[at] if at < len(node.inputs) else None


def _need(node: ir.Node, at: int) -> ir.Value:
    value = _input(node, at)
    if value is None:
        raise NoMatchError(f"it has no input {at}")
    return value


def _is_causal(node: ir.Node) -> bool:
    return node.op_type == "GroupQueryAttention" or any(
        node.attributes.get_int(name, 0) for name in ("is_causal", "unidirectional")
    )


def _head_size(node: ir.Node, queries: Operand, rows: int, value_size: int) -> int:
    """Returns the channels of a query head."""
    shape = queries.value.shape
    if queries.layout == "heads" and shape is not None and isinstance(shape[-1], int):
        return int(shape[-1])
    if _input(node, 1) is None:  # packed: all heads of the row have the same size
        return value_size
    if rows % queries.heads:
        raise NoMatchError(
            f"{rows} rows of its queries do not divide into {queries.heads} heads"
        )
    return rows // queries.heads


def _heads(node: ir.Node, name: str) -> int:
    """Returns a number of heads.

    Raises:
        NoMatchError: The node does not tell it, or it makes no sense.
    """
    count = node.attributes.get_int(name, 0)
    if count < 1:
        raise NoMatchError(f"it has no {name} above zero")
    return count


def _group_query(node: ir.Node) -> tuple[Operand, Operand, Operand]:
    heads, kv_heads = _heads(node, "num_heads"), _heads(node, "kv_num_heads")
    first = _need(node, 0)
    key, value = _input(node, 1), _input(node, 2)
    if key is None or value is None:
        return (
            Operand(first, "flat", heads),
            Operand(first, "flat", kv_heads, heads),
            Operand(first, "flat", kv_heads, heads + kv_heads),
        )
    return (
        Operand(first, "flat", heads),
        Operand(key, "flat", kv_heads),
        Operand(value, "flat", kv_heads),
    )


def _multi_head(node: ir.Node) -> tuple[Operand, Operand, Operand]:
    heads = _heads(node, "num_heads")
    first, key, value = _need(node, 0), _input(node, 1), _input(node, 2)
    if key is None:
        q, k, v = (Operand(first, "parts", heads, part) for part in range(3))
        return q, k, v
    if value is None:
        k, v = (Operand(key, "parts", heads, part) for part in range(2))
        return Operand(first, "flat", heads), k, v

    def layout(given: ir.Value) -> Layout:
        return "heads" if given.shape is not None and len(given.shape) == 4 else "flat"

    return (
        Operand(first, "flat", heads),
        Operand(key, layout(key), heads),
        Operand(value, layout(value), heads),
    )


def _standard(node: ir.Node) -> tuple[Operand, Operand, Operand]:
    values = [_need(node, at) for at in range(3)]
    counts = [node.attributes.get_int("q_num_heads", 0)]
    counts += [node.attributes.get_int("kv_num_heads", 0)] * 2
    if min(counts) > 0:
        q, k, v = (Operand(o, "flat", n) for o, n in zip(values, counts, strict=True))
        return q, k, v
    shapes = [value.shape for value in values]
    known = [
        int(s[1]) for s in shapes if s is not None and len(s) == 4 and isinstance(s[1], int)
    ]
    if len(known) < 3 or min(known) < 1:
        raise NoMatchError("the graph does not tell how many heads it has")
    q, k, v = (Operand(o, "heads", n) for o, n in zip(values, known, strict=True))
    return q, k, v


def _with_projections(node: ir.Node) -> tuple[Operand, Operand, Operand]:
    raise NoMatchError(
        "it holds the weights of its queries, keys and values, and no quantized kernel"
        " serves them; export the projections as products"
    )


_OPERANDS: Mapping[tuple[str, str], Callable[[ir.Node], tuple[Operand, Operand, Operand]]] = {
    ("", "Attention"): _standard,
    (_MICROSOFT, "Attention"): _with_projections,
    (_MICROSOFT, "QAttention"): _with_projections,
    (_MICROSOFT, "GroupQueryAttention"): _group_query,
    (_MICROSOFT, "MultiHeadAttention"): _multi_head,
}
_MASKS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "Attention"): (3,),
    (_MICROSOFT, "Attention"): (3, 5),
    (_MICROSOFT, "GroupQueryAttention"): (10,),
    (_MICROSOFT, "MultiHeadAttention"): (4, 5),
}
