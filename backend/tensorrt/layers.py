"""In which types the products of an engine compute, read from its own account of itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...ir import InputError

_LISTED = 24  # kinds of layers that the account keeps
_PRODUCT = re.compile(
    r"gemm|matmul|matrix_?multiply|conv(?!ert)|fully_?connected|einsum", re.IGNORECASE
)
# Narrowest first: a weight of 4 bits says more of a layer than the floats that it makes. The
# names are those of version 10 ("Half", "Row major linear FP16 format") and 11 ("FP16"), and
# those of kernels (i8i8, e4m3, f16f16).
_TYPES = (
    ("FP4", re.compile(r"fp4|e2m1", re.IGNORECASE)),
    ("INT4", re.compile(r"u?int4|(?<![a-z0-9])[iu]4", re.IGNORECASE)),
    ("FP8", re.compile(r"fp8|e4m3|e5m2", re.IGNORECASE)),
    ("INT8", re.compile(r"int8|(?<![a-z0-9])i8", re.IGNORECASE)),
    ("BF16", re.compile(r"bf16|bfloat16", re.IGNORECASE)),
    ("FP16", re.compile(r"half|fp16|float16|(?<![a-z0-9])f16", re.IGNORECASE)),
    ("TF32", re.compile(r"tf32", re.IGNORECASE)),
    ("FP32", re.compile(r"float(?!\d)|fp32|float32|(?<![a-z0-9])f32", re.IGNORECASE)),
)
_UNTOLD = "untold"


@dataclass(frozen=True)
class Products:
    """The products of an engine: matrix products and convolutions.

    Attributes:
        layers: Layers of the engine, products or not.
        by_type: How many products there are by the narrowest type that they read: ``INT4``,
            ``INT8``, ``FP8``, ``FP16``, ``FP32`` and so on, or ``untold``.
        kinds: The same in the engine's own words: kind of layer, types of its inputs, kernel.
    """

    layers: int
    by_type: dict[str, int]
    kinds: dict[str, int]


def products(account: str) -> Products:
    """Reads the JSON that an engine's inspector writes (version 10 or 11).

    Args:
        account: Of an engine that was built to tell in detail.

    Raises:
        InputError: It is no such JSON.
    """
    try:
        found = json.loads(account)["Layers"]
        layers = list(found)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("the engine's inspector wrote no list of layers") from error
    chosen = [one for one in layers if isinstance(one, dict) and _is_product(one)]
    kinds = Counter(_in_words(one) for one in chosen)
    by_type = Counter(_narrowest(one) for one in chosen)
    return Products(len(layers), dict(by_type), dict(kinds.most_common(_LISTED)))


def _is_product(layer: Mapping[str, Any]) -> bool:
    told = (layer.get(key) for key in ("LayerType", "ParameterType", "TacticName"))
    return any(_PRODUCT.search(str(one)) for one in told if one)


def _narrowest(layer: Mapping[str, Any]) -> str:
    """Returns the narrowest type that a layer reads; that of its kernel's name at a pinch."""
    read = list(_types_read(layer))
    for texts in (read, [str(layer.get("TacticName", ""))]):
        for name, form in _TYPES:
            if any(form.search(text) for text in texts):
                return name
    return _UNTOLD


def _types_read(layer: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is said of the types of a layer's inputs and weights."""
    for one in layer.get("Inputs") or ():
        if isinstance(one, dict):
            yield str(one.get("DataType") or one.get("Datatype") or one.get("Format/Datatype"))
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        yield str(weights.get("Type"))


def _in_words(layer: Mapping[str, Any]) -> str:
    read = " x ".join(_types_read(layer)) or _UNTOLD
    return f"{layer.get('LayerType', _UNTOLD)}: {read}: {layer.get('TacticName', _UNTOLD)}"
