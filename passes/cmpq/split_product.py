"""Products over part of the input channels each, and their sum with the outliers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...ir import Capabilities, Option, Use
from ..engine.emission.emitter import Emitter
from ..engine.emission.product import emit_kernel
from ..engine.emission.slim_product import Selection, SlimProduct, emit_sum, emit_wide
from ..engine.emission.stored import ExpandedUnit, StoredClass, StoredUnit, emit_codes
from .channel_codes import ChannelArrays, emit_places

INT64 = ir.DataType.INT64


class SplitChannels:
    """A unit whose channels have even levels of several widths, one class for each width.

    y = MatMulNBits_4(Gather(x, @columns_4)) + MatMulNBits_2(Gather(x, @columns_2))
    """

    def __init__(self, given: ChannelArrays, emit: Emitter) -> None:
        """Stores codes and scales of every class, and where its channels are."""
        self.given = given
        self._emit = emit
        self._classes: list[tuple[StoredClass, Selection | None]] = []
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
                None
                if _is_all(part, given)
                else Selection(f"class/{at}", part, given.unit.shape[1], emit)
            )
            self._classes.append((StoredClass(at, option, rows, 0, codes, own), seen))
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
        return emit_sum("classes", parts, dtype, emit)


def _is_all(columns: np.ndarray, given: ChannelArrays) -> bool:
    return np.array_equal(columns, np.arange(given.unit.shape[1]))


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
            kept, count = given.get("outliers/kept"), given.unit.shape[1]
            self._columns = SlimProduct(columns, kept, count, self._role, emit)
        if given.has("outliers/values"):
            values = emit.constant("values", given.get("outliers/values"))
            self._entries = (*emit_places(given, INT64, emit), values)

    def added(
        self, product: ir.Value, use: Use, dtype: ir.DataType, emit: Emitter
    ) -> ir.Value:
        """Emits ``product`` plus the contribution of the outliers."""
        result = product
        if self._columns is not None:
            result = self._columns.added(result, use.activation, dtype, emit)
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
        terms = node("terms", "Mul", [seen, emit_wide("values", values, dtype, self._emit)])
        places = node("rows", "Expand", [rows, node("dims", "Shape", [terms])])
        inputs = [product, places, terms]
        if dtype == ir.DataType.FLOAT16:  # which ONNX Runtime's CPU cannot scatter
            return self._scattered_wide(inputs, emit)
        return node("sum", "ScatterElements", inputs, axis=-1, reduction="add")

    def _scattered_wide(self, inputs: Sequence[ir.Value], emit: Emitter) -> ir.Value:
        """Emits the sum of halves in float32."""
        product, places, terms = inputs

        def cast(name: str, value: ir.Value, to: ir.DataType) -> ir.Value:
            given = {"to": int(to)}
            name = f"entries/{name}"
            return emit.node("outliers", name, "Cast", [value], given, dtype=to)

        wide = ir.DataType.FLOAT
        total = emit.node(
            "outliers",
            "entries/sum",
            "ScatterElements",
            [cast("product", product, wide), places, cast("terms/wide", terms, wide)],
            {"axis": -1, "reduction": "add"},
            dtype=wide,
        )
        return cast("narrow", total, ir.DataType.FLOAT16)
