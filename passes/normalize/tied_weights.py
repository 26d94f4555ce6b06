"""Find weights that are stored twice, also transposed, and keep one of them.

Weights are tied by their bytes, not by names. A fingerprint of a few entries on the diagonal,
which transposing leaves in place, sorts out nearly all pairs without reading the tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ...ir import Unit, find_units
from ...ir.units import SMALLEST_UNIT

_SAMPLED = 256  # entries in a fingerprint
_CHUNK = 1 << 24  # bytes hashed at once


class _Content(NamedTuple):
    """Hashes of a tensor read as it is, and read transposed (equal if it is not a matrix)."""

    straight: bytes
    transposed: bytes


def tie_weights(model: ir.Model) -> bool:
    """Merges initializers of the main graph that hold the same numbers.

    Two units are merged only where the result is one unit again: both can be quantized and
    count the same axis as rows, or neither can and they are equal as they stand.
    """
    units = {unit.weight: unit for unit in find_units(model)}
    changed = False
    for bucket in _buckets(_candidates(model)):
        kept: list[tuple[ir.Value, _Content]] = []
        for value in bucket:
            content = _content(_array(value))
            twin = next(
                (one for one in kept if _can_merge(one, (value, content), units)), None
            )
            if twin is None:
                kept.append((value, content))
            else:
                _replace(model, value, twin[0], turned=content.straight != twin[1].straight)
                changed = True
    return changed


def _candidates(model: ir.Model) -> Iterator[ir.Value]:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.size < SMALLEST_UNIT or tensor.dtype.is_string():
            continue
        if not (value.is_graph_input() or value.is_graph_output()):
            yield value


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def _fingerprint(array: np.ndarray) -> bytes:
    line = np.diagonal(array) if array.ndim == 2 else array.reshape(-1)
    return np.ascontiguousarray(line[:: max(1, len(line) // _SAMPLED)]).tobytes()


def _buckets(values: Iterable[ir.Value]) -> list[list[ir.Value]]:
    """Returns groups of two and more initializers that may hold the same numbers."""
    buckets: dict[tuple[object, ...], list[ir.Value]] = {}
    for value in values:
        array = _array(value)
        dims = tuple(sorted(array.shape)) if array.ndim == 2 else array.shape
        assert value.const_value is not None
        key = (value.const_value.dtype, dims, _fingerprint(array))
        buckets.setdefault(key, []).append(value)
    return [bucket for bucket in buckets.values() if len(bucket) > 1]


def _digest(array: np.ndarray) -> bytes:
    """Hashes shape and entries in row order, a few rows at a time."""
    total = hashlib.blake2b(repr(array.shape).encode(), digest_size=32)
    step = max(1, _CHUNK * len(array) // max(array.nbytes, 1))
    for at in range(0, len(array), step):
        rows = np.ascontiguousarray(array[at : at + step])
        total.update(rows.reshape(-1).view(np.uint8).data)
    return total.digest()


def _content(array: np.ndarray) -> _Content:
    straight = _digest(array)
    return _Content(straight, _digest(array.T) if array.ndim == 2 else straight)


def _can_merge(
    one: tuple[ir.Value, _Content],
    other: tuple[ir.Value, _Content],
    units: dict[ir.Value, Unit],
) -> bool:
    (kept, first), (value, second) = one, other
    unit, twin = units.get(kept), units.get(value)
    same = first.straight == second.straight
    if unit is None or twin is None or unit.reason or twin.reason:
        return same and bool(unit and not unit.reason) == bool(twin and not twin.reason)
    if _is_array(unit) != _is_array(twin):
        return False  # one would lose its kernel to the other
    if same:
        return unit.row_axis == twin.row_axis
    return first.straight == second.transposed and unit.row_axis == 1 - twin.row_axis


def _is_array(unit: Unit) -> bool:
    return unit.uses[0].kind == "array"


def _replace(model: ir.Model, value: ir.Value, kept: ir.Value, *, turned: bool) -> None:
    """Lets the readers of ``value`` read ``kept`` (through a Transpose if ``turned``)."""
    source = kept
    if turned:
        name = f"{value.name}/transposed"
        view = ir.node("Transpose", [kept], attributes={"perm": [1, 0]}, name=name)
        source = view.outputs[0]
        source.name, source.shape, source.type = value.name, value.shape, value.type
        model.graph.insert_before(model.graph[0], view)
    del model.graph.initializers[str(value.name)]
    value.replace_all_uses_with(source)
