"""Refuses models that cannot be compiled: already quantized, with NaN, too large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from .errors import InputError
from .operands import all_graphs, all_nodes
from .unit_search import find_units
from .units import FLOAT_TYPES

MOST_NODES = 1_000_000  # after inlining; functions that call functions can double without end
_CHUNK = 1 << 22
_QUANTIZED = {
    "BitLinear",
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "GatherBlockQuantized",
    "MatMulBnb4",
    "MatMulFpQ4",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QGemm",
    "QMoE",
    "QOrderedMatMul",
    "QuantizeLinear",
}


def _is_quantized(node: ir.Node) -> bool:
    return node.op_type in _QUANTIZED or node.op_type.startswith(("QLinear", "QOrdered"))


def refuse_quantized(model: ir.Model) -> None:
    """Refuses a model that somebody has quantized already.

    Raises:
        InputError: It holds quantized operators.
    """
    bodies = (all_nodes(function) for function in model.functions.values())
    found = Counter(
        node.op_type
        for nodes in (all_nodes(model.graph), *bodies)
        for node in nodes
        if _is_quantized(node)
    )
    if found:
        kind, count = found.most_common(1)[0]
        raise InputError(
            f"the model is quantized already: it holds {count} {kind} nodes",
            hint="give the original float model; mpqc inspect shows what this one holds",
        )


def _constants(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for graph in all_graphs(model.graph):
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
        for node in graph:
            if node.op_type == "Constant" and "value" in node.attributes:
                attribute = node.attributes["value"]
                if not attribute.is_ref():
                    yield str(node.outputs[0].name), attribute.as_tensor()


def _flaws(tensor: ir.TensorProtocol, infinity_too: bool) -> str:
    """Returns ``NaN``, ``infinity`` or nothing, reading the tensor piece by piece."""
    flat = tensor.numpy().reshape(-1)
    for at in range(0, flat.size, _CHUNK):
        piece = flat[at : at + _CHUNK]
        if piece.dtype.kind != "f":
            piece = piece.astype(np.float32)
        if np.isfinite(piece).all():
            continue
        if np.isnan(piece).any():
            return "NaN"
        if infinity_too:
            return "infinity"
    return ""


def check_finite(model: ir.Model) -> None:
    """Refuses NaN in any float constant, and infinity in any weight (masks may hold it).

    Raises:
        InputError: Names the tensors.
    """
    weights = {unit.name for unit in find_units(model)}
    broken = {
        name: flaw
        for name, tensor in _constants(model)
        if tensor.dtype in FLOAT_TYPES and (flaw := _flaws(tensor, name in weights))
    }
    if broken:
        first = next(iter(broken))
        others = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise InputError(
            f"tensor {first!r} holds {broken[first]}{others}",
            hint="the weights are damaged; download or export the model again",
        )


def _call_counts(
    function: ir.Function | ir.Graph, model: ir.Model
) -> tuple[int, Counter[ir.OperatorIdentifier]]:
    calls: Counter[ir.OperatorIdentifier] = Counter()
    size = 0
    for node in all_nodes(function):
        size += 1
        if node.op_identifier() in model.functions:
            calls[node.op_identifier()] += 1
    return size, calls


def inlined_size(model: ir.Model) -> int:
    """Returns how many nodes the main graph will have when all functions are inlined.

    Raises:
        InputError: A function calls itself, directly or through others.
    """
    bodies = {key: _call_counts(body, model) for key, body in model.functions.items()}
    sizes: dict[ir.OperatorIdentifier, int] = {}
    try:
        order = list(
            TopologicalSorter({key: set(bodies[key][1]) for key in bodies}).static_order()
        )
    except CycleError as error:
        raise InputError(f"function {error.args[1][0]!r} calls itself") from error
    for key in order:
        size, calls = bodies[key]
        sizes[key] = size + sum(sizes[one] * count for one, count in calls.items())
    size, calls = _call_counts(model.graph, model)
    return size + sum(sizes[one] * count for one, count in calls.items())


def inline_functions(model: ir.Model) -> bool:
    """Replaces calls of model-local functions by their bodies; returns whether there were any.

    Raises:
        InputError: The functions are recursive, malformed, or expand beyond ``MOST_NODES``.
    """
    if not model.functions:
        return False
    size = inlined_size(model)
    if size > MOST_NODES:
        raise InputError(f"the model's functions expand to more than {MOST_NODES} nodes")
    try:
        InlinePass()(model)
    except Exception as error:  # onnx-ir raises many kinds for malformed calls
        line = " ".join(str(error.__cause__ or error).split())[:300]
        raise InputError(f"cannot inline the model's functions: {line}") from error
    model.functions.clear()
    return True
