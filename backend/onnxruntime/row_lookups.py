"""The tiny models of rows that are lookups: every entry of a table once, in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

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


def lookup(bits: int, group: int, form: str, random: np.random.Generator) -> RowModel:
    """Returns the model of a lookup in a table of ``bits`` bits, as ``form`` does it.

    Args:
        bits: Width of a code.
        group: Columns that share a scale.
        form: One of the forms that ``Capabilities.lookup`` knows, or ``expand``: rows are
            looked up in floats.
        random: Where codes and scales come from.
    """
    codes, scales = some_codes((16, 3, group), bits, random), some_scales((16, 3), random)
    body, constants = _LOOKUPS[form](bits, codes, scales)
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
    rows, _, group = codes.shape
    body = f"""s = Cast <to = 1> (h)
        table = DequantizeLinear <axis = 1, block_size = {group}> (c, s)
        y = Gather(table, ids)"""
    return body, {"c": codes.reshape(rows, -1).astype(STANDARD[bits]), "h": scales}


_LOOKUPS: Mapping[str, Callable[[int, np.ndarray, np.ndarray], tuple[str, Arrays]]] = {
    "unpack": _unpacked,
    "gather-block-quantized": _block_quantized,
    "dequantize": _dequantized,
    "expand": _expanded,
}
