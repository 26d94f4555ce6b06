"""Shapes of values, worked out from the graph where an exporter left them out."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...ir.units import stored_tensor

Dim = int | str | None  # a length, the name of one, or unknown
Dims = list[Dim]
Known = Callable[[ir.Value | None], Dims | None]  # shapes of a node's inputs
Compute = Callable[[ir.Node, Known], Dims | None]


def dims_of(value: ir.Value | None) -> Dims | None:
    """Returns the shape of a value, as far as the graph tells; None when not even its rank."""
    known: dict[ir.Value | None, Dims | None] = {None: None}
    begun: set[ir.Value] = set()
    todo = [value]
    while todo:  # not by recursion: graphs are deeper than Python's stack
        one = todo[-1]
        if one is None or one in known:
            todo.pop()
            continue
        told, compute = _told(one), _compute(one.producer())
        node = one.producer()
        if told is not None or node is None or compute is None:
            known[one] = told
        elif one in begun:
            known[one] = compute(node, known.get)
        else:
            begun.add(one)
            todo += [given for given in node.inputs if given not in known]
    return known[value]


def _told(value: ir.Value) -> Dims | None:
    """Returns the shape that the graph gives a value."""
    tensor = stored_tensor(value)
    if tensor is not None:
        return [int(dim) for dim in tensor.shape.numpy()]
    if value.shape is not None:
        return [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return None


def _compute(node: ir.Node | None) -> Compute | None:
    """Returns what works out the shape of a node's output, if anything does."""
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    return _COMPUTED.get(node.op_type)


def _same(node: ir.Node, known: Known) -> Dims | None:
    return known(node.inputs[0])


def _reshaped(node: ir.Node, known: Known) -> Dims | None:
    del known
    return _asked(node.inputs[1])


def _transposed(node: ir.Node, known: Known) -> Dims | None:
    first = known(node.inputs[0])
    if first is None:
        return None
    perm = node.attributes.get_ints("perm", list(reversed(range(len(first)))))
    return [first[at] for at in perm]


def _unsqueezed(node: ir.Node, known: Known) -> Dims | None:
    first = known(node.inputs[0])
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = stored_tensor(axes) if axes is not None else None
    if first is None or tensor is None:
        return None
    places = tensor.numpy().reshape(-1)
    rank, rest = len(first) + len(places), list(first)
    for at in sorted(int(place) % rank for place in places):
        rest.insert(at, 1)
    return rest


def _expanded(node: ir.Node, known: Known) -> Dims | None:
    return _broadcast(known(node.inputs[0]), _asked(node.inputs[1]))


def _elementwise(node: ir.Node, known: Known) -> Dims | None:
    return _broadcast(known(node.inputs[0]), known(node.inputs[1]))


def _broadcast(first: Dims | None, second: Dims | None) -> Dims | None:
    if first is None or second is None:
        return None
    if len(second) > len(first):
        first, second = second, first
    lead = len(first) - len(second)
    pairs = zip(first[lead:], second, strict=True)
    return first[:lead] + [b if a == 1 else a for a, b in pairs]


def _product(node: ir.Node, known: Known) -> Dims | None:
    first, second = known(node.inputs[0]), known(node.inputs[1])
    if first is None or second is None or min(len(first), len(second)) < 2:
        return None
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    lead = first[:-1] if len(first) >= len(second) else [*second[:-2], first[-2]]
    return [*lead, second[-2] if turned else second[-1]]


def _looked_up(node: ir.Node, known: Known) -> Dims | None:
    table, ids = known(node.inputs[0]), known(node.inputs[1])
    if table is None or ids is None or node.attributes.get_int("axis", 0) != 0:
        return None
    return [*ids, *table[1:]]


def _asked(shape: ir.Value | None) -> Dims | None:
    """Returns the shape that a Reshape asks for; open dims are None."""
    if shape is None:
        return None
    tensor = stored_tensor(shape)
    if tensor is not None:
        return [int(dim) if dim > 0 else None for dim in tensor.numpy().reshape(-1)]
    node = shape.producer()
    if node is None or node.op_type != "Concat" or node.domain not in ("", "ai.onnx"):
        return None
    parts: Dims = []
    for part in node.inputs:
        known = part is not None and stored_tensor(part) is not None
        parts += (_asked(part) if known else None) or [None]
    return parts


_COMPUTED: dict[str, Compute] = {
    **dict.fromkeys(("Cast", "Identity", "LayerNormalization", "Relu", "Softmax"), _same),
    **dict.fromkeys(("Add", "Div", "Mul", "Sub"), _elementwise),
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    "Expand": _expanded,
    "Gather": _looked_up,
    "Reshape": _reshaped,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}
