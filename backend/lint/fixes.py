"""Repairs that leave what a graph computes as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from .checks.pairs import file_version
from .linter import lint
from .rule import Finding
from .view import View, given, maker, readers, whole

_SIGNED = {ir.DataType.UINT8: ir.DataType.INT8, ir.DataType.UINT4: ir.DataType.INT4}
Fix = Callable[[View, ir.Node | None], bool]


def fix(model: ir.Model, target: str, *, size: int = 0) -> list[Finding]:
    """Repairs in place what can be repaired; returns what has been.

    Args:
        model: A graph without functions.
        target: What it is to suit.
        size: Bytes of its files.
    """
    repaired: list[Finding] = []
    for name, repair in FIXES.items():
        broken = [one for one in lint(model, target, size=size) if one.rule.id == name]
        view = View.of(model, size)
        repaired += [one for one in broken if repair(view, one.node)]
    if repaired:
        common.RemoveUnusedNodesPass()(model)
    return repaired


def _write_newer_format(view: View, node: ir.Node | None) -> bool:
    view.model.ir_version = max(view.model.ir_version, file_version(view))
    return True


def _store_codes(view: View, node: ir.Node | None) -> bool:
    """Stores the codes of a weight instead of its floats."""
    assert node is not None
    weight, scale = view.array(node.inputs[0]), view.array(given(node, 1))
    dtype = view.codes_type(node)
    if weight is None or scale is None or dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return False
    zero = view.array(given(node, 2))
    if not view.knows(given(node, 2)) or node.outputs[0].is_graph_output():
        return False
    axis, block = whole(node, "axis", 1), whole(node, "block_size", 0)
    wide = _spread(scale, weight.shape, axis, block)
    around = np.zeros(weight.shape) if zero is None else None
    around = _spread(zero, weight.shape, axis, block) if around is None else around
    if wide is None or around is None or not (wide > 0).all():
        return False
    limits = np.iinfo(dtype.numpy())
    steps = weight.astype(np.float32) / wide.astype(np.float32)
    codes = np.rint(steps) + around.astype(np.int32)
    stored = np.clip(codes, limits.min, limits.max).astype(dtype.numpy())
    return _give_constant(view, node, stored)


def _give_constant(view: View, node: ir.Node, array: np.ndarray) -> bool:
    """Lets whoever reads a node read a constant instead."""
    assert node.graph is not None, "it was found in one"
    node.outputs[0].replace_all_uses_with(_store(view, node.outputs[0], array))
    node.graph.remove(node, safe=True)
    return True


def _spread(
    array: np.ndarray | None, shape: tuple[int, ...], axis: int, block: int
) -> np.ndarray | None:
    """Returns scales or zero points in the shape of what they belong to; None if none fits."""
    if array is None:
        return None
    if array.size == 1 and not block:
        return np.full(shape, array.reshape(()))
    if not -len(shape) <= axis < len(shape):
        return None
    try:
        if block:
            wide = np.repeat(array, block, axis=axis)
            return np.take(wide, np.arange(shape[axis]), axis=axis)
        dims = [1] * len(shape)
        dims[axis] = array.size
        return np.broadcast_to(array.reshape(dims), shape)
    except (ValueError, IndexError):  # as many scales as something else has entries
        return None


def _read_codes_as_they_were(view: View, node: ir.Node | None) -> bool:
    assert node is not None
    before = maker(node.inputs[0], "DequantizeLinear")
    if before is None or before.inputs[0] is None or node.outputs[0].is_graph_output():
        return False
    assert node.graph is not None, "it was found in one"
    node.outputs[0].replace_all_uses_with(before.inputs[0])
    node.graph.remove(node, safe=True)
    return True


def _make_codes_signed(view: View, node: ir.Node | None) -> bool:
    """Shifts codes around the middle of their range to codes around zero."""
    assert node is not None
    if node.op_type == "DequantizeLinear" and view.is_weight(node):
        return _shift_weight(view, node)
    rounding = node if node.op_type == "QuantizeLinear" else None
    rounding = rounding or maker(given(node, 0), "QuantizeLinear")
    if rounding is None:
        return False
    pair = [rounding, *readers(rounding.outputs[0])]
    expanding = all(one.op_type == "DequantizeLinear" for one in pair[1:])
    if not expanding or rounding.outputs[0].is_graph_output():
        return False
    if not all(_is_around_middle(view, one) for one in pair):
        return False
    dtype = _SIGNED[_codes(view, rounding)]
    for one in pair:
        zero = view.numbers(given(one, 2))
        assert zero is not None, "it is around the middle"
        kept = _store(view, given(one, 2), np.zeros(zero.shape, dtype.numpy()))
        one.replace_input_with(2, kept)
    rounding.attributes.pop("output_dtype", None)  # the zero point tells it
    rounding.outputs[0].type = ir.TensorType(dtype)
    return True


def _shift_weight(view: View, node: ir.Node) -> bool:
    if not _is_around_middle(view, node):
        return False
    codes, dtype = view.array(node.inputs[0]), _codes(view, node)
    if codes is None:
        return False
    middle = 1 << (dtype.bitwidth - 1)
    shifted = (codes.astype(np.int32) - middle).astype(_SIGNED[dtype].numpy())
    node.replace_input_with(0, _store(view, node.inputs[0], shifted))
    node.resize_inputs(2)
    return True


def _codes(view: View, node: ir.Node) -> ir.DataType:
    return view.codes_type(node) or ir.DataType.UNDEFINED


def _is_around_middle(view: View, node: ir.Node) -> bool:
    dtype, zero = _codes(view, node), view.numbers(given(node, 2))
    if dtype not in _SIGNED or zero is None:
        return False
    return bool((zero == 1 << (dtype.bitwidth - 1)).all())


def _make_scales_positive(view: View, node: ir.Node | None) -> bool:
    """Negates scales and codes; whoever has a scale of zero gets codes of zero instead."""
    assert node is not None
    codes, scale = view.array(given(node, 0)), view.array(given(node, 1))
    if node.op_type != "DequantizeLinear" or codes is None or scale is None:
        return False
    dtype = view.codes_type(node)
    zero = view.numbers(given(node, 2))
    signed = dtype in (ir.DataType.INT8, ir.DataType.INT4)
    if not signed or (zero is not None and zero.any()) or dtype is None:
        return False
    axis, block = whole(node, "axis", 1), whole(node, "block_size", 0)
    wide = _spread(scale.astype(np.float64), codes.shape, axis, block)
    if wide is None:
        return False
    turned = np.where(wide == 0, 0, codes.astype(np.int32) * np.sign(wide).astype(np.int32))
    if turned.max(initial=0) >= 1 << (dtype.bitwidth - 1):
        return False  # the least code has no counterpart
    least = np.abs(scale[scale != 0]).min(initial=1.0)  # of codes that are zero any will do
    positive = np.where(scale == 0, least, np.abs(scale)).astype(scale.dtype)
    stored = turned.astype(dtype.numpy())
    node.replace_input_with(0, _store(view, node.inputs[0], stored))
    node.replace_input_with(1, _store(view, given(node, 1), positive))
    return True


def _store_floats(view: View, node: ir.Node | None) -> bool:
    """Stores the floats that codes of a bias stand for."""
    assert node is not None
    codes, scale = view.array(given(node, 0)), view.array(given(node, 1))
    zero = view.numbers(given(node, 2))
    shifted = not view.knows(given(node, 2)) or (zero is not None and zero.any())
    if codes is None or scale is None or shifted or node.outputs[0].is_graph_output():
        return False
    axis, block = whole(node, "axis", 1), whole(node, "block_size", 0)
    wide = _spread(scale, codes.shape, axis, block)
    if wide is None:
        return False
    floats = codes.astype(np.float32) * wide.astype(np.float32)
    return _give_constant(view, node, floats.astype(scale.dtype))


def _repeat(view: View, node: ir.Node | None) -> bool:
    """Gives every reader but the first a DequantizeLinear of its own."""
    assert node is not None
    for at, reader in enumerate(readers(node.outputs[0])[1:], 1):
        copy = ir.Node(
            node.domain,
            node.op_type,
            node.inputs,
            node.attributes.values(),
            name=f"{node.name}/{at}",
        )
        made, value = copy.outputs[0], node.outputs[0]
        made.name = view.free(f"{value.name}/{at}")
        made.type, made.shape = value.type, value.shape
        assert node.graph is not None
        node.graph.insert_after(node, copy)
        for index, given_value in enumerate(reader.inputs):
            if given_value is value:
                reader.replace_input_with(index, made)
    return True


def _add_bias_behind(view: View, node: ir.Node | None) -> bool:
    assert node is not None
    bias, value = node.inputs[5], node.outputs[0]
    node.resize_inputs(5)
    while node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    name = view.free(f"{value.name}/product")
    plain = ir.Value(name=name, type=value.type, shape=value.shape)
    product = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        node.attributes.values(),
        outputs=[plain],
        name=f"{node.name}/product",
    )
    added = ir.node("Add", [plain, bias], name=f"{node.name}/bias")
    made = added.outputs[0]
    made.name, made.type, made.shape = value.name, value.type, value.shape
    assert node.graph is not None
    ir.convenience.replace_nodes_and_values(
        node.graph, node, [node], [product, added], [value], [made]
    )
    return True


def _store(view: View, like: ir.Value | None, array: np.ndarray) -> ir.Value:
    """Stores a constant in the place of another, which others may go on reading."""
    name = view.free(f"{like.name if like is not None else 'constant'}/fixed")
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    view.model.graph.register_initializer(value)
    return value


# In this order: what one repair leaves, a later one may take up.
FIXES: Mapping[str, Fix] = {
    "pair-that-changes-nothing": _read_codes_as_they_were,
    "floats-stored": _store_codes,
    "trt-unsigned-codes": _make_codes_signed,
    "trt-bias-of-int32": _store_floats,
    "trt-scale-not-positive": _make_scales_positive,
    "trt-shared-dequantizer": _repeat,
    "nbits-cuda-bias": _add_bias_behind,
    "file-too-old": _write_newer_format,
}
