"""Products over part of the input channels each, and what is added to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...ir import Capabilities, Option, Use
from .channel_codes import ChannelArrays, emit_places, emit_positions
from .emitter import Emitter
from .product import affine, emit_kernel
from .stored import ExpandedUnit, RowClass, StoredUnit, emit_codes

INT32 = ir.DataType.INT32
INT64 = ir.DataType.INT64


class SplitChannels:
    """A unit whose channels have even levels of several widths, one class for each width.

    y = MatMulNBits_4(Gather(x, @columns_4)) + MatMulNBits_2(Gather(x, @columns_2))
    """

    def __init__(self, given: ChannelArrays, emit: Emitter) -> None:
        """Stores codes and scales of every class, and where its channels are."""
        self.given = given
        self._emit = emit
        self._classes: list[tuple[RowClass, Selection | None]] = []
        rows, order, scales = given.unit.shape[0], given.get("channels"), given.get("scales")
        column = scale = 0
        for at, (bits, count) in enumerate(
            zip(given.note.bits, given.note.counts, strict=True)
        ):
            option = Option(bits, given.note.group)
            signed = given.get(f"indices/{at}").astype(np.int16) - (1 << (bits - 1))
            codes = emit_codes(f"codes/{at}", signed.T.astype(np.int8), option, emit)
            groups = option.groups(count)
            own = emit.constant(f"scales/{at}", scales[:, scale : scale + groups])
            part = order[column : column + count]
            seen = (
                None if _is_all(part, given) else Selection(f"class/{at}", part, given, emit)
            )
            self._classes.append((RowClass(at, option, rows, 0, codes, own), seen))
            column, scale = column + count, scale + groups

    def stored_unit(self) -> StoredUnit:
        """Returns the first class, of all channels where rows are looked up, as a unit."""
        return ExpandedUnit(self.given.unit, self._classes[0][0], self._emit)

    def product(
        self,
        stored: StoredUnit,
        use: Use,
        dtype: ir.DataType,
        table: Capabilities,
        emit: Emitter,
    ) -> ir.Value:
        """Emits the sum of the products of all classes."""
        parts = []
        for (one, seen), count in zip(self._classes, self.given.note.counts, strict=True):
            activation = (
                use.activation if seen is None else seen.of(use.activation, dtype, emit)
            )
            scales = stored.scales(one, dtype)
            role = "kernel" if seen is None else "channels"
            parts.append(
                emit_kernel(one, count, scales, activation, dtype, table, emit, role=role)
            )
        return _sum("classes", parts, dtype, emit)


def _is_all(columns: np.ndarray, given: ChannelArrays) -> bool:
    return np.array_equal(columns, np.arange(given.unit.shape[1]))


class Selection:
    """Some channels of an activation: a Slice where they are neighbours, else a Gather."""

    def __init__(
        self, name: str, columns: np.ndarray, given: ChannelArrays, emit: Emitter
    ) -> None:
        """Stores which channels they are."""
        self._name = name
        first, last = int(columns[0]), int(columns[-1])
        self._slices = np.array_equal(columns, np.arange(first, last + 1))
        if self._slices:
            bounds = {"from": first, "to": last + 1, "axis": -1}
            self._inputs = [
                emit.constant(f"{name}/{what}", np.array([number], dtype=np.int64))
                for what, number in bounds.items()
            ]
        else:
            count = given.unit.shape[1]
            self._inputs = [emit_positions(f"{name}/columns", columns, count, INT32, emit)]

    def of(self, activation: ir.Value, dtype: ir.DataType, emit: Emitter) -> ir.Value:
        """Emits the channels of ``activation``."""
        inputs = [activation, *self._inputs]
        if self._slices:
            return emit.node("permutation", self._name, "Slice", inputs, dtype=dtype)
        axis = {"axis": -1}
        return emit.node("permutation", self._name, "Gather", inputs, axis, dtype=dtype)


class KeptOutliers:
    """What stays in 16 bits beside the codes of a unit.

    The channels are a slim MatMul. A single weight w of row n and column j adds ``w x_j`` to
    output n: Gather, Mul and ScatterElements.
    """

    def __init__(self, given: ChannelArrays, emit: Emitter) -> None:
        """Stores values and places."""
        # Codes of a grid have a place for every channel, even levels none for outliers.
        self._role = "channels" if given.note.levels == "even" else "outliers"
        self._emit = emit
        columns = given.outlier_columns()
        self._columns = self._entries = None
        if len(columns):
            kept = emit.constant("outliers", given.get("outliers/kept"))
            self._columns = (Selection("outliers/x", columns, given, emit), kept)
        if given.has("outliers/values"):
            values = emit.constant("values", given.get("outliers/values"))
            self._entries = (*emit_places(given, INT64, emit), values)

    def added(
        self, product: ir.Value, use: Use, dtype: ir.DataType, emit: Emitter
    ) -> ir.Value:
        """Emits ``product`` and what the outliers contribute."""
        result = product
        if self._columns is not None:
            seen, kept = self._columns
            inputs = [
                seen.of(use.activation, dtype, emit),
                self._wide("outliers", kept, dtype),
            ]
            slim = emit.node(self._role, "outliers/product", "MatMul", inputs, dtype=dtype)
            result = _sum("outliers/sum", [result, slim], dtype, emit)
        if self._entries is not None:
            result = self._with_entries(result, use, dtype, emit)
        return result

    def _with_entries(
        self, product: ir.Value, use: Use, dtype: ir.DataType, emit: Emitter
    ) -> ir.Value:
        assert self._entries is not None
        rows, columns, values = self._entries

        def node(
            name: str, op: str, inputs: Sequence[ir.Value], **attributes: int | str
        ) -> ir.Value:
            kind = INT64 if name in ("dims", "rows") else dtype
            return emit.node("outliers", f"entries/{name}", op, inputs, attributes, dtype=kind)

        seen = node("x", "Gather", [use.activation, columns], axis=-1)
        terms = node("terms", "Mul", [seen, self._wide("values", values, dtype)])
        places = node("rows", "Expand", [rows, node("dims", "Shape", [terms])])
        inputs = [product, places, terms]
        return node("sum", "ScatterElements", inputs, axis=-1, reduction="add")

    def _wide(self, name: str, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Emits a Cast of stored halves, which the runtime computes at load."""
        if dtype == ir.DataType.FLOAT16:
            return value
        to = {"to": int(dtype)}
        return self._emit.node("dequantize", f"{name}/wide", "Cast", [value], to, dtype=dtype)


def finished(use: Use, product: ir.Value, dtype: ir.DataType, emit: Emitter) -> ir.Value:
    """Emits what a Gemm does beside its product."""
    return affine(use.node, product, dtype, emit) if use.node.op_type == "Gemm" else product


def _sum(name: str, parts: Sequence[ir.Value], dtype: ir.DataType, emit: Emitter) -> ir.Value:
    total = parts[0]
    for at, part in enumerate(parts[1:], start=1):
        total = emit.node("kernel", f"{name}/{at}", "Add", [total, part], dtype=dtype)
    return total
