"""Caches: inputs of a model that a node carries on into an output."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from .typing_rules import is_float32

# Where attention reads its caches, and where it writes them.
_CACHES = {
    "Attention": ((4, 5), (1, 2)),
    "GroupQueryAttention": ((3, 4), (1, 2)),
    "MultiHeadAttention": ((6, 7), (1, 2)),
}
Cache = tuple[ir.Value, ir.Value]


def carried(graph: ir.Graph, low: Collection[ir.Node]) -> list[Cache]:
    """Returns the caches, if they can be float16: pairs of an input and an output.

    What comes out of one call goes into the next, so nobody but the runtime sees the numbers;
    and they are most of what a long prompt takes. Programs that generate take caches of one
    type, so if one of them has to stay float32, all do.

    Args:
        graph: The main graph of a model.
        low: The nodes that compute in float16, which alone may read or make a cache.
    """
    caches = {node: found for node in graph if (found := _caches(node))}
    fits = all(
        node in low and all(usage.node in low for usage in before.uses())
        for node, found in caches.items()
        for before, _ in found
    )
    return [one for found in caches.values() for one in found] if fits else []


def _caches(node: ir.Node) -> list[Cache]:
    """Returns the caches that a node carries on."""
    return [
        (before, after)
        for before, after in _pairs(node)
        if before is not None
        and before.is_graph_input()
        and after.is_graph_output()
        and is_float32(before)
        and is_float32(after)
    ]


def _pairs(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value]]:
    if node.op_type == "Concat":
        before, after = node.inputs[0], node.outputs[0]
        return [(before, after)] if _grows(node, before) and after.uses() else []
    inputs, outputs = _CACHES.get(node.op_type, ((), ()))
    return [
        (node.inputs[one], node.outputs[other])
        for one, other in zip(inputs, outputs, strict=True)
        if one < len(node.inputs) and other < len(node.outputs)
    ]


def _grows(node: ir.Node, value: ir.Value | None) -> bool:
    """Tells whether a Concat makes an input longer along an axis that is open."""
    if value is None or value.shape is None:
        return False
    axis = node.attributes.get_int("axis", 0)
    inside = -len(value.shape) <= axis < len(value.shape)
    return inside and not isinstance(value.shape[axis], int)
