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


def carried(graph: ir.Graph, low: Collection[ir.Node]) -> list[tuple[ir.Value, ir.Value]]:
    """Returns the caches that can be float16: pairs of an input and an output.

    What comes out of one call goes into the next, so nobody but the runtime sees the numbers;
    and they are most of what a long prompt takes.

    Args:
        graph: The main graph of a model.
        low: The nodes that compute in float16, which alone may read or make a cache.
    """
    found = []
    for node in graph:
        for before, after in _pairs(node) if node in low else ():
            if before is None or not before.is_graph_input() or not after.is_graph_output():
                continue
            floats = is_float32(before) and is_float32(after)
            if floats and all(usage.node in low for usage in before.uses()):
                found.append((before, after))
    return found


def _pairs(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value]]:
    if node.op_type == "Concat":
        return [(node.inputs[0], node.outputs[0])]
    inputs, outputs = _CACHES.get(node.op_type, ((), ()))
    return [
        (node.inputs[one], node.outputs[other])
        for one, other in zip(inputs, outputs, strict=True)
        if one < len(node.inputs) and other < len(node.outputs)
    ]
