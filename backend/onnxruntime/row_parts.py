"""What the tiny models of rows are made of: codes, scales and graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from ...ir import Feeds

Arrays = Mapping[str, np.ndarray]
EXACT, ROUNDED = 1e-3, 2e-2  # relative errors: of float32; with activations of 8 bits
STANDARD = {4: ml_dtypes.int4, 8: np.int8}  # codes that the standard has a type for
_TOKENS = 3
_OPSETS = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'


@dataclass(frozen=True)
class RowModel:
    """A model that needs what a row promises.

    Attributes:
        model: It, with one output ``y``.
        feeds: What to run it on, one sample after the other.
        expected: What it must return for each.
        tolerance: The relative error that the row may have.
        folded: Op types that must be gone once the runtime has loaded it.
    """

    model: ir.Model
    feeds: tuple[Feeds, ...]
    expected: tuple[np.ndarray, ...]
    tolerance: float
    folded: tuple[str, ...] = ()


def some_codes(shape: tuple[int, ...], bits: int, random: np.random.Generator) -> np.ndarray:
    """Returns signed codes of every value that ``bits`` bits have."""
    low = -(1 << (bits - 1))
    return random.integers(low, -low, shape, np.int32)


def codes_with_headroom(
    shape: tuple[int, ...], bits: int, random: np.random.Generator
) -> np.ndarray:
    """Returns signed codes as results multiply them with bytes: no processor clips their sums.

    Without VNNI processors add up two products in 16 bits. Results leave headroom for that.
    """
    return some_codes(shape, bits, random) // 2


def some_scales(
    shape: tuple[int, ...], random: np.random.Generator, *, signed: bool = True
) -> np.ndarray:
    """Returns scales as results have them, of both signs where the target takes those."""
    scales = random.standard_normal(shape)
    return (scales if signed else np.abs(scales) + 2.0**-10).astype(np.float16)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs codes along the last axis into bytes, the first lowest, offset to be positive."""
    fields = (codes + (1 << (bits - 1))).reshape(*codes.shape[:-1], -1, 8 // bits)
    packed: np.ndarray = (fields << np.arange(0, 8, bits)).sum(axis=-1, dtype=np.uint8)
    return packed


def decoded(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns rows x columns numbers of rows x groups x group codes and their scales."""
    wide = codes.astype(np.float32) * scales.astype(np.float32)[..., None]
    values: np.ndarray = wide.reshape(len(codes), -1)
    return values


def model_of(inputs: str, output: str, body: str, constants: Arrays) -> ir.Model:
    """Returns the model of some lines in ONNX's own text form."""
    text = f"{_OPSETS} row ({inputs}) => ({output}) {{ {body} }}"
    proto = onnx.parser.parse_model(text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def on_vectors(
    body: str,
    constants: Arrays,
    weight: np.ndarray,
    random: np.random.Generator,
    tolerance: float,
) -> RowModel:
    """Returns a product of ``weight``, rows x columns, for one token and for several."""
    columns = weight.shape[1]
    model = model_of(f"float[m, {columns}] x", "float[m, n] y", body, constants)
    feeds = [
        random.standard_normal((tokens, columns)).astype(np.float32) for tokens in (1, _TOKENS)
    ]
    expected = tuple(one @ weight.T for one in feeds)
    return RowModel(model, tuple({"x": one} for one in feeds), expected, tolerance)
