"""Tiny models, one for each row of a capability table, and what they must compute.

Each does with codes what the lowering of the target does with them. What it must compute is
numpy's, from the same codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ...ir import Capabilities
from ...ir.target_rows import (
    ARRAY,
    BY_ROW,
    CONVOLUTION,
    EXPANSION,
    INTEGER_CONVOLUTION,
    INTEGER_PRODUCT,
    LOOKUP,
    PRODUCT,
    Row,
)
from .row_lookups import lookup
from .row_parts import (
    EXACT,
    ROUNDED,
    STANDARD,
    Arrays,
    RowModel,
    codes_with_headroom,
    decoded,
    model_of,
    on_vectors,
    pack,
    some_codes,
    some_scales,
)

_KERNEL = (4, 3, 3, 3)  # of a convolution
_ODD = 13  # rows of a tiny product, times the multiple that the kernel wants
_COLUMNS = 32  # of an array whose rows have one scale
_SIGNED = {8: np.int8, 16: np.int16}


def row_model(
    row: Row, group: int, table: Capabilities, shape: tuple[int, int] | None = None
) -> RowModel:
    """Returns the model of a row.

    Args:
        row: The row.
        group: One of its groups.
        table: The table that it is in.
        shape: Rows and columns of a product; by default as few as show that it is right.

    Raises:
        ValueError: The standard has no type for such codes.
    """
    random = np.random.default_rng(row.bits * 1000 + group)
    if row.kind == PRODUCT:
        rows, columns = shape or _tiny(row, group, table)
        return _product(row.bits, group or columns, rows, columns, table, random)
    if row.kind == LOOKUP:
        return lookup(row.bits, group, table, random)
    if row.kind == ARRAY:
        array = {"expand": _array, "dequantize": _dequantized_array}[table.arrays]
        return array(row.bits, group, random)
    return _OTHERS[row.kind](row.bits, random)


def float_product(rows: int, columns: int) -> RowModel:
    """Returns the product in float32 that others are compared with."""
    random = np.random.default_rng(1)
    weight = random.standard_normal((columns, rows)).astype(np.float32)
    return on_vectors("y = MatMul(x, w)", {"w": weight}, weight.T, random, EXACT)


def _tiny(row: Row, group: int, table: Capabilities) -> tuple[int, int]:
    """Returns an odd number of rows, and columns that fill the last group if they have to."""
    kernel = table.kernel(row.bits)
    assert kernel is not None, "rows of products are made of kernels"
    if group == BY_ROW or table.whole_groups:
        columns = 3 * (group or 32)
    else:
        columns = 2 * group + kernel.column_multiple * max(1, group // 32)
    return _ODD * kernel.row_multiple, columns


# Products


def _product(
    bits: int,
    group: int,
    rows: int,
    columns: int,
    table: Capabilities,
    random: np.random.Generator,
) -> RowModel:
    groups = -(-columns // group)
    codes = some_codes((rows, groups, group), bits, random)
    scales = some_scales((rows, groups), random, signed=table.signed_scales)
    weight = decoded(codes, scales)[:, :columns]
    if table.lowering == "insert-qdq":
        return _dequantized_product(bits, codes, scales, weight, random)
    kernel = table.kernel(bits)
    level = 0 if kernel is None else kernel.accuracy_level
    body = (
        f"y = com.microsoft.MatMulNBits <K = {columns}, N = {rows}, bits = {bits},"
        f" block_size = {group}, accuracy_level = {level}> (x, c, s)"
    )
    tolerance = ROUNDED if table.rounds_activations(bits) else EXACT
    # A width that does not divide a byte has no packed form: the runtime has to refuse it.
    fields = codes if 8 % bits else pack(codes, bits)
    constants: Arrays = {
        "c": fields[..., : group * bits // 8].astype(np.uint8),
        "s": scales.astype(np.float32),
    }
    return on_vectors(body, constants, weight, random, tolerance)


def _dequantized_product(
    bits: int,
    codes: np.ndarray,
    scales: np.ndarray,
    weight: np.ndarray,
    random: np.random.Generator,
) -> RowModel:
    """Returns a product behind DequantizeLinear; the runtime may round its activations."""
    if bits not in STANDARD:
        raise ValueError(f"the standard has no type for codes of {bits} bits")
    rows, groups, group = codes.shape
    by_row = groups == 1
    how = "axis = 1" if by_row else f"axis = 0, block_size = {group}"
    body = f"""s = Cast <to = 1> (h)
        w = DequantizeLinear <{how}> (c, s)
        y = MatMul(x, w)"""
    constants: Arrays = {
        "c": codes.reshape(rows, -1).T.astype(STANDARD[bits]),
        "h": scales[:, 0] if by_row else np.ascontiguousarray(scales.T),
    }
    return on_vectors(body, constants, weight, random, ROUNDED)


def _integer_product(bits: int, random: np.random.Generator) -> RowModel:
    codes = codes_with_headroom((_ODD, 1, 64), bits, random)
    scales = some_scales((_ODD, 1), random)
    body = """q, step, zero = DynamicQuantizeLinear(x)
        sum = MatMulInteger(q, c, zero)
        wide = Cast <to = 1> (sum)
        steps = Mul(step, s)
        y = Mul(wide, steps)"""
    constants: Arrays = {
        "c": codes[:, 0].T.astype(np.int8),
        "s": scales[:, 0].astype(np.float32),
    }
    return on_vectors(body, constants, decoded(codes, scales), random, ROUNDED)


# What readers take as floats


def _array(bits: int, group: int, random: np.random.Generator) -> RowModel:
    """Returns a weight that is unpacked when the model is loaded, times a number a column."""
    shape = (_ODD, 2, group) if group else (_ODD, 1, _COLUMNS)
    codes, scales = some_codes(shape, bits, random), some_scales(shape[:2], random)
    body, constants = _unpacking(bits, codes.reshape(_ODD, -1))
    body += f"""
        split = Constant <value_ints = [0, -1, {shape[2]}]> ()
        grouped = Reshape(code, split)
        step = Cast <to = 1> (s)
        number = Mul(grouped, step)
        flat = Constant <value_ints = [0, -1]> ()
        w = Reshape(number, flat)
        y = Mul(x, w)"""
    made = {**constants, "s": scales[..., None]}
    return _at_load(body, made, decoded(codes, scales), random, ("Cast", "Floor", "Mod"))


def _dequantized_array(bits: int, group: int, random: np.random.Generator) -> RowModel:
    """Returns a weight behind DequantizeLinear, with a scale for each row."""
    assert group == BY_ROW, "the lowering gives each row of an array one scale"
    codes = some_codes((_ODD, 1, _COLUMNS), bits, random)
    scales = some_scales((_ODD, 1), random, signed=False)
    body = """s = Cast <to = 1> (h)
        w = DequantizeLinear <axis = 0> (c, s)
        y = Mul(x, w)"""
    constants = {"c": codes[:, 0].astype(STANDARD[bits]), "h": scales[:, 0]}
    return _at_load(body, constants, decoded(codes, scales), random, ())


def _unpacking(bits: int, codes: np.ndarray) -> tuple[str, Arrays]:
    """Returns the lines that make ``code``, floats, of stored codes, rows x columns."""
    if bits in _SIGNED:
        return "code = Cast <to = 1> (c)", {"c": codes.astype(_SIGNED[bits])}
    body = """byte = Cast <to = 1> (c)
        low = Mul(byte, down)
        whole = Floor(low)
        field = Mod <fmod = 1> (whole, base)
        wide = Constant <value_ints = [0, -1]> ()
        together = Reshape(field, wide)
        code = Sub(together, zero)"""
    return body, {
        "c": pack(codes, bits)[..., None],
        "down": (0.5 ** np.arange(0, 8, bits)).astype(np.float32),
        "base": np.array(1 << bits, np.float32),
        "zero": np.array(1 << (bits - 1), np.float32),
    }


def _expansion(bits: int, random: np.random.Generator) -> RowModel:
    """Returns codes that lie in bit planes, and become bytes when the model is loaded.

    Byte ``o`` of eight has as its bit ``r`` the bit ``o`` of the stored byte ``r``, that is
    ``(s >> o) - 2 (s >> (o + 1))``: a BitShift, and a convolution of integers.
    """
    stored = random.integers(0, 256, (_ODD, 1, 4, bits), np.uint8)
    weights = np.zeros((8, 8, 1, bits), np.int64)
    for byte in range(8):
        weights[byte, byte, 0] = 1 << np.arange(bits)
        if byte < 7:
            weights[byte, byte + 1, 0] = -2 << np.arange(bits)
    body = """field = BitShift <direction = "RIGHT"> (c, down)
        sum = QLinearConv(field, one, none, k, one, middle, one, none)
        shape = Constant <value_ints = [0, -1]> ()
        flat = Reshape(sum, shape)
        w = Cast <to = 1> (flat)
        y = Mul(x, w)"""
    constants: Arrays = {
        "c": stored,
        "down": np.arange(8, dtype=np.uint8)[:, None, None],
        "k": (weights + 128).astype(np.uint8),
        "one": np.array(1, np.float32),
        "none": np.array(0, np.uint8),
        "middle": np.array(128, np.uint8),
    }
    planes = (stored >> np.arange(8, dtype=np.uint8)[:, None, None]) & 1
    values = (planes.astype(np.int64) << np.arange(bits)).sum(axis=-1)
    flat = values.reshape(_ODD, -1).astype(np.float32)
    return _at_load(body, constants, flat, random, ("BitShift", "QLinearConv"))


def _at_load(
    body: str,
    constants: Arrays,
    weight: np.ndarray,
    random: np.random.Generator,
    folded: tuple[str, ...],
) -> RowModel:
    columns = weight.shape[1]
    model = model_of(f"float[1, {columns}] x", f"float[m, {columns}] y", body, constants)
    x = random.standard_normal((1, columns)).astype(np.float32)
    return RowModel(model, ({"x": x},), (x * weight,), EXACT, folded)


# Convolutions


def _convolution(bits: int, random: np.random.Generator) -> RowModel:
    body = """s = Cast <to = 1> (h)
        w = DequantizeLinear <axis = 0> (c, s)
        y = Conv(x, w)"""
    return _on_images(some_codes(_KERNEL, bits, random), body, {}, random, EXACT)


def _integer_convolution(bits: int, random: np.random.Generator) -> RowModel:
    """Returns a convolution of rounded images, whose sums are rounded too."""
    body = """s = Cast <to = 1> (h)
        q = QuantizeLinear(x, step, middle)
        sum = QLinearConv(q, step, middle, c, s, none, wide, middle)
        y = DequantizeLinear(sum, wide, middle)"""
    constants: Arrays = {
        "step": np.array(8 / 255, np.float32),
        "wide": np.array(0.0, np.float32),  # set by the size of the sums
        "middle": np.array(128, np.uint8),
        "none": np.zeros(4, np.int8),
    }
    codes = codes_with_headroom(_KERNEL, bits, random)
    return _on_images(codes, body, constants, random, ROUNDED)


def _on_images(
    codes: np.ndarray,
    body: str,
    more: Arrays,
    random: np.random.Generator,
    tolerance: float,
) -> RowModel:
    scales = some_scales((4,), random, signed=False) + np.float16(0.5)
    weight = codes * scales.astype(np.float32)[:, None, None, None]
    image = np.clip(random.standard_normal((1, 3, 8, 8)), -3.9, 3.9).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(2, 3))
    expected = np.einsum("bchwij,ocij->bohw", windows, weight).astype(np.float32)
    if "wide" in more:
        more = {**more, "wide": np.array(np.abs(expected).max() / 127, np.float32)}
    constants: Arrays = {"c": codes.astype(np.int8), "h": scales, **more}
    model = model_of("float[b, 3, 8, 8] x", "float[b, 4, 6, 6] y", body, constants)
    return RowModel(model, ({"x": image},), (expected,), tolerance)


_OTHERS: Mapping[str, Callable[[int, np.random.Generator], RowModel]] = {
    INTEGER_PRODUCT: _integer_product,
    INTEGER_CONVOLUTION: _integer_convolution,
    CONVOLUTION: _convolution,
    EXPANSION: _expansion,
}
