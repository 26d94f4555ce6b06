"""MatMul and Gemm with a stored weight: one MatMulNBits for each row class."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....ir import Capabilities, Use
from .emitter import CONTRIB, Emitter
from .integer_product import emit_integer_product
from .slim_product import SlimProduct
from .stored import StoredClass, StoredUnit


def emit_product(
    stored: StoredUnit,
    kept: SlimProduct | None,
    use: Use,
    dtype: ir.DataType,
    table: Capabilities,
    emit: Emitter,
) -> ir.Value:
    """Emits the nodes that replace ``use.node`` and returns its new output.

    Args:
        stored: The weight.
        kept: Channels that stay in 16 bits.
        use: The product.
        dtype: Type in which it computes.
        table: What kernels the target has.
        emit: Where the nodes go.
    """
    parts = [
        emit_kernel(
            one, stored.columns, stored.scales(one, dtype), use.activation, dtype, table, emit
        )
        for one in stored.classes
    ]
    result = joined(stored, use, parts, dtype, emit)
    if kept is not None:
        result = kept.added(result, use.activation, dtype, emit)
    return finished(use, result, dtype, emit)


def joined(
    stored: StoredUnit, use: Use, parts: list[ir.Value], dtype: ir.DataType, emit: Emitter
) -> ir.Value:
    """Joins the outputs of the row classes into one."""
    result = parts[0]
    if len(parts) > 1:
        axis = {"axis": -1}
        result = emit.node("permutation", "sorted", "Concat", parts, axis, dtype=dtype)
    if not stored.reordered:
        return result
    return _in_order(result, stored.positions, use.product_rank, dtype, emit)


def _in_order(
    result: ir.Value, positions: ir.Value, rank: int | None, dtype: ir.DataType, emit: Emitter
) -> ir.Value:
    """Emits the rows of a product in the order that consumers see.

    A Gather along the last axis copies one element at a time, which takes a good part of the
    time of a prompt. Along the first axis, between two Transposes, it copies the values of all
    tokens at once, and is no slower for a single one.
    """
    if rank is None or rank < 2:
        inputs = [result, positions]
        return emit.node("permutation", "rows", "Gather", inputs, {"axis": -1}, dtype=dtype)
    turn = {"perm": [rank - 1, *range(rank - 1)]}
    back = {"perm": [*range(1, rank), 0]}
    rows = emit.node("permutation", "turned", "Transpose", [result], turn, dtype=dtype)
    moved = emit.node("permutation", "moved", "Gather", [rows, positions], dtype=dtype)
    return emit.node("permutation", "rows", "Transpose", [moved], back, dtype=dtype)


def finished(use: Use, product: ir.Value, dtype: ir.DataType, emit: Emitter) -> ir.Value:
    """Emits what a Gemm does beside its product."""
    return affine(use.node, product, dtype, emit) if use.node.op_type == "Gemm" else product


def emit_kernel(
    row_class: StoredClass,
    columns: int,
    scales: ir.Value,
    activation: ir.Value,
    dtype: ir.DataType,
    table: Capabilities,
    emit: Emitter,
    *,
    role: str = "kernel",
) -> ir.Value:
    """Emits the kernel that multiplies ``columns`` channels of ``activation`` by a class.

    That is a MatMulNBits, or a product of integers for an option with rounded activations.
    """
    option = row_class.option
    if option.integer:
        return emit_integer_product(row_class, scales, activation, emit)
    kernel = table.kernel(option.kernel_bits)
    assert kernel is not None, "checked before anything is emitted"
    return emit.node(
        role,
        f"product/{row_class.index}",
        "MatMulNBits",
        [activation, row_class.codes, scales],
        {
            "K": columns,
            "N": row_class.rows,
            "bits": option.kernel_bits,
            "block_size": option.group,
            "accuracy_level": kernel.accuracy_level,
        },
        domain=CONTRIB,
        dtype=dtype,
    )


def affine(gemm: ir.Node, product: ir.Value, dtype: ir.DataType, emit: Emitter) -> ir.Value:
    """Emits ``alpha * product + beta * C``, without factors of one and absent terms."""
    result = _scaled("alpha", gemm, product, dtype, emit)
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    if bias is None:
        return result
    bias = _scaled("beta", gemm, bias, dtype, emit)
    return emit.node(None, "bias", "Add", [result, bias], dtype=dtype)


def _scaled(
    name: str, gemm: ir.Node, value: ir.Value, dtype: ir.DataType, emit: Emitter
) -> ir.Value:
    factor = gemm.attributes.get_float(name, 1.0)
    if factor == 1.0:
        return value
    constant = emit.constant(name, np.array(factor, dtype=dtype.numpy()))
    # Only alpha is the unit's own: a node that scales the bias reads the bias too.
    role = "factor" if name == "alpha" else None
    return emit.node(role, f"{name}/scaled", "Mul", [value, constant], dtype=dtype)
