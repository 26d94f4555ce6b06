"""Layers with a bias that compute in integers, and everything that meets their codes.

ONNX Runtime gives such a layer a bias of int32, whose scale is the product of those of the
activation and of the weight. Of two scales of float16 it computes that in float16, which has
no numbers so small: the results are wrong, by a quarter of their size in a ResNet (1.31.1). So
the region keeps scales of float32. What is between codes computes in integers, so nothing is
lost.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ...ir.units import stored_tensor

_WITH_BIAS = {"Conv", "ConvTranspose", "Gemm"}
_BIAS = 2
_ABSORBED = {"Add", "Clip", "Relu"}  # by the rounding that follows


def integer_regions(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Returns the nodes of such regions, QuantizeLinear and DequantizeLinear among them."""
    found: dict[ir.Node, None] = {}
    waiting = [node for node in nodes if _rounds_its_bias(node)]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found[node] = None
        waiting += _neighbours(node)
    return list(found)


def _rounds_its_bias(node: ir.Node) -> bool:
    if node.op_type not in _WITH_BIAS or len(node.inputs) <= _BIAS:
        return False
    bias = node.inputs[_BIAS]
    constant = bias is not None and stored_tensor(bias) is not None
    return constant and any(_makes_activation(one) for one in _sources(node)[:1])


def _neighbours(node: ir.Node) -> list[ir.Node]:
    """Returns the nodes on the other side of codes, and those between a node and codes."""
    if node.op_type == "QuantizeLinear":
        return _readers(node)  # each a DequantizeLinear
    if node.op_type == "DequantizeLinear":
        rounding = node.inputs[0].producer() if node.inputs[0] is not None else None
        codes = [rounding] if rounding is not None else []
        return codes + [one for one in _readers(node) if codes and _is_rounded(one)]
    before = [one for one in _sources(node) if one.op_type == "DequantizeLinear"]
    after = [one for one in _readers(node) if one.op_type == "QuantizeLinear"]
    absorbed = [one for one in _readers(node) if one.op_type in _ABSORBED]
    return before + after + (absorbed if len(_readers(node)) == 1 else [])


def _is_rounded(node: ir.Node) -> bool:
    """Tells whether nothing but codes is made of a node's result."""
    return bool(_readers(node)) and all(
        one.op_type == "QuantizeLinear" or (one.op_type in _ABSORBED and _is_rounded(one))
        for one in _readers(node)
    )


def _makes_activation(node: ir.Node) -> bool:
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    rounding = codes.producer() if codes is not None else None
    return rounding is not None and rounding.op_type == "QuantizeLinear"


def _sources(node: ir.Node) -> list[ir.Node]:
    makers = [value.producer() for value in node.inputs if value is not None]
    return [one for one in makers if one is not None]


def _readers(node: ir.Node) -> list[ir.Node]:
    return [usage.node for value in node.outputs for usage in value.uses()]
