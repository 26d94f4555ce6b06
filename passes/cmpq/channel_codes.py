"""Weights from indices and levels of their input channels: nodes that run once, at load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir import ArrayStore, ChannelAllocation, Option, Unit
from ..engine.emission.emitter import Emitter
from ..engine.emission.expansion import emit_expansion
from ..engine.emission.positions import emit_positions
from ..engine.emission.stored import ExpandedUnit, StoredClass, StoredUnit
from ..engine.numerics.dense_codes import pack_dense
from .channel_cost import INDEX_GROUP

INT32 = ir.DataType.INT32
INT64 = ir.DataType.INT64
UINT8 = ir.DataType.UINT8
_SIGN = 128  # what an expansion adds to signed codes


@dataclass(frozen=True)
class ChannelArrays:
    """What ``quantize-channels`` left for a unit.

    Attributes:
        unit: The unit.
        note: Its widths and counts.
        arrays: The side store.
    """

    unit: Unit
    note: ChannelAllocation
    arrays: ArrayStore

    def get(self, what: str) -> np.ndarray:
        """Returns an array of the unit."""
        return self.arrays.get(f"{self.unit.name}/{what}")

    def has(self, what: str) -> bool:
        """Tells whether the unit has an array."""
        return f"{self.unit.name}/{what}" in self.arrays

    def outlier_columns(self) -> np.ndarray:
        """Returns the channels that stay in 16 bits, int32."""
        if not self.has("outliers/columns"):
            return np.zeros(0, dtype=np.int32)
        return self.get("outliers/columns")

    def stored_order(self) -> np.ndarray:
        """Returns the channels as they are stored: class after class, outliers last."""
        return np.concatenate([self.get("channels"), self.outlier_columns()])


def emit_float(given: ChannelArrays, emit: Emitter) -> ir.Value:
    """Emits a weight with free levels; returns what replaces it, in its layout and type.

    %part_i = GatherElements <axis = 1> (@levels_i, expanded @indices_i)
    %sorted = Concat <axis = 0> (%part_0, ..., @kept)
    %weight = ScatterND(Gather(%sorted, @positions), @entries, @values)
    """
    unit, dtype = given.unit, given.unit.tensor.dtype
    rows, columns = unit.shape
    parts = []
    for at, bits in enumerate(given.note.bits):
        index = emit_indices(f"indices/{at}", given.get(f"indices/{at}"), bits, emit)
        levels = _cast(
            f"levels/{at}",
            emit.constant(f"levels/{at}", given.get(f"levels/{at}")),
            dtype,
            emit,
        )
        parts.append(_picked(f"channels/{at}", levels, index, dtype, emit))
    if len(given.outlier_columns()):
        kept = emit.constant("outliers", given.get("outliers/kept"))
        parts.append(_cast("outliers", kept, dtype, emit))
    weight = _in_order("channels", parts, given.stored_order(), dtype, emit)
    if given.has("outliers/values"):
        weight = _with_entries(given, weight, dtype, emit)
    return _laid_out(unit, weight, columns, rows, dtype, emit)


def _laid_out(
    unit: Unit, weight: ir.Value, columns: int, rows: int, dtype: ir.DataType, emit: Emitter
) -> ir.Value:
    """Emits the return from channels x rows to the layout of the weight."""
    dims = list(unit.tensor.shape.numpy())
    weight.shape = ir.Shape([columns, rows])
    if unit.row_axis == 0:
        turn = {"perm": [1, 0]}
        weight = emit.node("dequantize", "turned", "Transpose", [weight], turn, dtype=dtype)
        weight.shape = ir.Shape([rows, columns])
    if len(dims) > 2:
        shape = emit.constant("dims", np.array(dims, dtype=np.int64))
        weight = emit.node("dequantize", "shaped", "Reshape", [weight, shape], dtype=dtype)
        weight.shape = ir.Shape(dims)
    return weight


def _with_entries(
    given: ChannelArrays, weight: ir.Value, dtype: ir.DataType, emit: Emitter
) -> ir.Value:
    """Puts single weights that are stored with their places into channels x rows."""
    rows, columns = emit_places(given, INT64, emit)
    axis = emit.shared("channels/last", np.array([1], dtype=np.int64))
    pair = [
        emit.node("outliers", f"{name}/wide", "Unsqueeze", [value, axis], dtype=INT64)
        for name, value in (("column", columns), ("row", rows))
    ]
    places = emit.node("outliers", "places", "Concat", pair, {"axis": 1}, dtype=INT64)
    values = emit.constant("values", given.get("outliers/values"))
    wide = _cast("values", values, dtype, emit)
    return emit.node("outliers", "entries", "ScatterND", [weight, places, wide], dtype=dtype)


def emit_places(
    given: ChannelArrays, dtype: ir.DataType, emit: Emitter
) -> tuple[ir.Value, ir.Value]:
    """Stores rows and columns of the single weights; returns both as ``dtype``."""
    entries = given.get("outliers/entries")
    return (
        emit_positions("row", entries[:, 0], given.unit.shape[0], dtype, emit),
        emit_positions("column", entries[:, 1], given.unit.shape[1], dtype, emit),
    )


def emit_on_grid(given: ChannelArrays, group: int, emit: Emitter) -> StoredUnit:
    """Emits the codes of a weight on a grid as kernels read them.

    Every index picks a code of the grid from the levels of its channel. Channels then return
    to their order, are padded to whole groups and packed into bytes:

        %part_i = GatherElements <axis = 1> (@levels_i, expanded @indices_i)
        %codes = Transpose(Gather(Concat(%part_0, ..., zeros), @positions))

    Args:
        given: The stored form.
        group: Columns that share a scale for the kernel.
        emit: Where the nodes go.
    """
    rows, columns = given.unit.shape
    grid_bits = 4 if given.note.levels == "grid4" else 8
    parts = [_grid_codes(given, at, grid_bits, emit) for at in range(len(given.note.bits))]
    groups = -(-columns // group)
    empty = groups * group - sum(given.note.counts)
    if empty:
        zero = emit.shared(
            f"channels/zero{grid_bits}", np.array(1 << (grid_bits - 1), np.uint8)
        )
        dims = emit.constant("empty/dims", np.array([empty, rows], dtype=np.int64))
        parts.append(emit.node("expansion", "empty", "Expand", [zero, dims], dtype=UINT8))
    order = np.concatenate([given.stored_order(), np.arange(columns, groups * group)])
    sorted_codes = _in_order("codes", parts, order, UINT8, emit)
    turn = {"perm": [1, 0]}
    turned = emit.node(
        "expansion", "codes/turned", "Transpose", [sorted_codes], turn, dtype=UINT8
    )
    codes = _packed(turned, grid_bits, group, emit)
    codes.shape = ir.Shape([rows, groups, group * grid_bits // 8])
    scales = emit.constant("scales", given.get("scales"))
    if given.get("scales").shape[1] < groups:
        dims = emit.constant("scales/dims", np.array([rows, groups], dtype=np.int64))
        scales = emit.node(
            "expansion", "scales/all", "Expand", [scales, dims], dtype=ir.DataType.FLOAT16
        )
        scales.shape = ir.Shape([rows, groups])
    one = StoredClass(0, Option(grid_bits, group), rows, 0, codes, scales)
    return ExpandedUnit(given.unit, one, emit)


def _grid_codes(given: ChannelArrays, at: int, grid_bits: int, emit: Emitter) -> ir.Value:
    """Emits the codes of one class of channels: uint8, channels x rows."""
    bits = given.note.bits[at]
    index = emit_indices(f"indices/{at}", given.get(f"indices/{at}"), bits, emit)
    if bits == grid_bits:  # all levels there are
        return _cast(f"codes/{at}", index, UINT8, emit)
    codes = given.get(f"levels/{at}").astype(np.int16) + (1 << (grid_bits - 1))
    levels = emit.constant(f"levels/{at}", codes.astype(np.uint8))
    return _picked(f"codes/{at}", levels, index, UINT8, emit)


def _packed(codes: ir.Value, grid_bits: int, group: int, emit: Emitter) -> ir.Value:
    """Emits rows x groups x bytes, each with one code or two, the first in its lower bits."""
    size = group * grid_bits // 8
    dims = emit.shared(f"expand/{size}/dims", np.array([0, -1, size], dtype=np.int64))
    if grid_bits == 4:
        pairs = emit.shared("channels/pairs", np.array([0, -1, 2], dtype=np.int64))
        wide = _cast("codes", codes, INT32, emit)
        both = emit.node("expansion", "codes/pairs", "Reshape", [wide, pairs], dtype=INT32)
        halves = []
        for place in (0, 1):
            which = emit.shared(f"channels/{place}", np.array(place, dtype=np.int64))
            half = emit.node(
                "expansion",
                f"codes/half{place}",
                "Gather",
                [both, which],
                {"axis": 2},
                dtype=INT32,
            )
            halves.append(half)
        sixteen = emit.shared("channels/sixteen", np.array(16, dtype=np.int32))
        high = emit.node("expansion", "codes/high", "Mul", [halves[1], sixteen], dtype=INT32)
        joined = emit.node("expansion", "codes/joined", "Add", [halves[0], high], dtype=INT32)
        codes = _cast("codes", joined, UINT8, emit)
    return emit.node("expansion", "codes/packed", "Reshape", [codes, dims], dtype=UINT8)


def emit_indices(name: str, indices: np.ndarray, bits: int, emit: Emitter) -> ir.Value:
    """Stores indices (uint8, channels x rows) densely; returns them as int32."""
    rows = indices.shape[1]
    if bits == 8:
        return _cast(name, emit.constant(name, indices), INT32, emit)
    half = 1 << (bits - 1)
    signed = (indices.astype(np.int16) - half).astype(np.int8)
    packed = pack_dense(signed, bits, 8, INDEX_GROUP)
    value = emit_expansion(name, packed, bits, 8, INDEX_GROUP, emit)
    flat = emit.shared("channels/flat", np.array([0, -1], dtype=np.int64))
    value = emit.node("expansion", f"{name}/flat", "Reshape", [value, flat], dtype=UINT8)
    if rows % INDEX_GROUP:
        bounds = [
            emit.shared(f"channels/{what}", np.array([number], dtype=np.int64))
            for what, number in (("start", 0), (f"rows{rows}", rows), ("last", 1))
        ]
        value = emit.node("expansion", f"{name}/cut", "Slice", [value, *bounds], dtype=UINT8)
    wide = _cast(name, value, INT32, emit)
    offset = emit.shared(f"channels/offset{bits}", np.array(_SIGN - half, dtype=np.int32))
    return emit.node("expansion", f"{name}/places", "Sub", [wide, offset], dtype=INT32)


def _picked(
    name: str, levels: ir.Value, index: ir.Value, dtype: ir.DataType, emit: Emitter
) -> ir.Value:
    axis = {"axis": 1}
    return emit.node("expansion", name, "GatherElements", [levels, index], axis, dtype=dtype)


def _in_order(
    name: str, parts: Sequence[ir.Value], order: np.ndarray, dtype: ir.DataType, emit: Emitter
) -> ir.Value:
    """Emits channels below each other, each in its place: ``order`` says which they are."""
    value = parts[0]
    if len(parts) > 1:
        axis = {"axis": 0}
        value = emit.node("expansion", f"{name}/sorted", "Concat", parts, axis, dtype=dtype)
    if np.array_equal(order, np.arange(len(order))):
        return value
    inverse = np.argsort(order)
    places = emit_positions(f"{name}/positions", inverse, len(order), INT32, emit)
    return emit.node(
        "expansion", f"{name}/ordered", "Gather", [value, places], {"axis": 0}, dtype=dtype
    )


def _cast(name: str, value: ir.Value, dtype: ir.DataType, emit: Emitter) -> ir.Value:
    """Emits a Cast unless ``value`` has the type already."""
    if value.dtype == dtype:
        return value
    to = {"to": int(dtype)}
    return emit.node(
        "expansion", f"{name}/{dtype.name.lower()}", "Cast", [value], to, dtype=dtype
    )
