"""The tiny models of rows that are lookups: every entry of a table once, in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ...ir import Capabilities
from .row_parts import (
    EXACT,
    STANDARD,
    Arrays,
    RowModel,
    decoded,
    model_of,
    pack,
    some_codes,
    some_scales,
)

_COLUMNS = 96  # of a table whose rows have one scale


def lookup(
    bits: int, group: int, table: Capabilities, random: np.random.Generator
) -> RowModel:
    """Returns the model of a lookup, in the form that the target has for it.

    Args:
        bits: Width of a code.
        group: Columns that share a scale; 0 for a whole row.
        table: The target.
        random: Where codes and scales come from.
    """
    shape = (16, 3, group) if group else (16, 1, _COLUMNS)
    codes = some_codes(shape, bits, random)
    scales = some_scales(shape[:2], random, signed=table.signed_scales)
    body, constants = _LOOKUPS[table.lookup](bits, codes, scales)
    ids = random.permutation(16).reshape(2, 8)
    model = model_of("int64[a, b] ids", "float[a, b, n] y", body, constants)
    expected = decoded(codes, scales)[ids]
    return RowModel(model, ({"ids": ids},), (expected,), EXACT)


def _unpacked(bits: int, codes: np.ndarray, scales: np.ndarray) -> tuple[str, Arrays]:
    group = codes.shape[2]
    body = f"""found = Gather(c, ids)
        number = Cast <to = 1> (found)
        low = Div(number, powers)
        whole = Floor(low)
        field = Mod <fmod = 1> (whole, base)
        shape = Constant <value_ints = [0, 0, -1, {group}]> ()
        code = Reshape(field, shape)
        signed = Sub(code, zero)
        half = Gather(s, ids)
        step = Cast <to = 1> (half)
        values = Mul(signed, step)
        flat = Constant <value_ints = [0, 0, -1]> ()
        y = Reshape(values, flat)"""
    return body, {
        "c": pack(codes, bits)[..., None],
        "s": scales[..., None],
        "powers": (2.0 ** np.arange(0, 8, bits)).astype(np.float32),
        "base": np.array(1 << bits, np.float32),
        "zero": np.array(1 << (bits - 1), np.float32),
    }


def _block_quantized(bits: int, codes: np.ndarray, scales: np.ndarray) -> tuple[str, Arrays]:
    rows, groups, group = codes.shape
    body = f"""y = com.microsoft.GatherBlockQuantized <bits = {bits}, block_size = {group},
            gather_axis = 0, quantize_axis = 1> (c, ids, s, z)"""
    zeros = np.zeros((rows, -(-groups * bits // 8) * 8 // bits), np.int32)
    return body, {
        "c": pack(codes.reshape(rows, -1), bits),
        "s": scales.astype(np.float32),
        "z": pack(zeros, bits),
    }


def _dequantized(bits: int, codes: np.ndarray, scales: np.ndarray) -> tuple[str, Arrays]:
    rows, _, group = codes.shape
    body = f"""wide = Cast <to = 3> (c)
        table = Transpose <perm = [1, 0]> (wide)
        found = Gather(table, ids)
        number = DequantizeLinear(found, unit)
        shape = Constant <value_ints = [0, 0, -1, {group}]> ()
        code = Reshape(number, shape)
        half = Gather(s, ids)
        step = Cast <to = 1> (half)
        values = Mul(code, step)
        flat = Constant <value_ints = [0, 0, -1]> ()
        y = Reshape(values, flat)"""
    return body, {
        "c": codes.reshape(rows, -1).T.astype(STANDARD[bits]),
        "s": scales[..., None],
        "unit": np.array(1, np.float32),
    }


def _expanded(bits: int, codes: np.ndarray, scales: np.ndarray) -> tuple[str, Arrays]:
    rows, groups, group = codes.shape
    how = f"axis = 0, block_size = {group}" if groups > 1 else "axis = 1"
    body = f"""s = Cast <to = 1> (h)
        turned = DequantizeLinear <{how}> (c, s)
        table = Transpose <perm = [1, 0]> (turned)
        y = Gather(table, ids)"""
    return body, {
        "c": codes.reshape(rows, -1).T.astype(STANDARD[bits]),
        "h": np.ascontiguousarray(scales.T) if groups > 1 else scales[:, 0],
    }


_LOOKUPS: Mapping[str, Callable[[int, np.ndarray, np.ndarray], tuple[str, Arrays]]] = {
    "unpack": _unpacked,
    "gather-block-quantized": _block_quantized,
    "dequantize": _dequantized,
    "expand": _expanded,
}
