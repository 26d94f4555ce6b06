"""Int8 products: tokens rounded as they come, weights once, summed up in int32.

    s_t = max_j |x_tj| / 127      q_tj = round(x_tj / s_t)      y_tn = s_t r_n sum_j q_tj w_nj

Activations are stored as uint8 around 128: with unsigned activations and signed weights, x86
processors have instructions for the product, and ONNX Runtime uses them. Signed ones are many
times slower there. Older processors clip sums of two such products, so weights leave room.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch

from ...ir import LeftInFloat, Unit, Use, annotate, drop_note, quantizable
from ...ir.analysis.offered import obstacle, result_type
from ...ir.vocabulary import ColumnScales
from ..engine.emission.emitter import Emitter, Names
from ..engine.emission.product import affine
from ..engine.execution.parallel import for_each
from ..engine.numerics.activations import largest_code
from ..engine.numerics.gptq import Rounded, round_rows
from ..engine.numerics.packing import code_of_zero, pack
from ..engine.numerics.pair_sums import without_overflow
from ..engine.pipeline.base import PassContext
from ..engine.statistics.quadratic import Quadratic

_REFINEMENTS = 3  # as quantize-weights
_MIDDLE = 128  # the code of zero
FLOAT, INT32, UINT8, INT8 = (
    ir.DataType.FLOAT,
    ir.DataType.INT32,
    ir.DataType.UINT8,
    ir.DataType.INT8,
)


def lower_all(model: ir.Model, bits: int, context: PassContext) -> bool:
    """Replaces every product by a unit by an int8 product; says why it leaves others.

    Weights are rounded against calibration's Hessians, with one scale for each row.
    """
    units, left = [], {}
    for unit in quantizable(model):
        why = _why_not(unit)
        if why:
            left[unit.name] = why
            annotate(unit.notes, LeftInFloat(unit.name, why))
        else:
            units.append(unit)

    def work(unit: Unit) -> Rounded:
        factor = Quadratic.of(unit, context.arrays, context.device).factor()
        weight = torch.from_numpy(unit.matrix())
        rounded = round_rows(
            weight.to(context.device), bits, unit.shape[1], factor, refinements=_REFINEMENTS
        )
        return _without_overflow(weight, rounded)

    stored = for_each(work, units, context.progress, "rounding", device=context.device)
    _Products(model, bits).replace(units, stored)
    report = context.report["rewrite-crossquant"]
    report |= {"int8": [unit.name for unit in units], "float": left}
    return bool(units or left)


def _without_overflow(weight: torch.Tensor, rounded: Rounded) -> Rounded:
    """Rounds anew what processors without VNNI would clip; codes of 4 bits never are."""
    codes, scales = without_overflow(
        weight.numpy(), rounded.codes.cpu().numpy(), rounded.scales.cpu().numpy()[:, 0]
    )
    return Rounded(torch.from_numpy(codes), torch.from_numpy(scales)[:, None])


def _why_not(unit: Unit) -> str:
    """Returns why a unit keeps its float products; empty when it need not."""
    if any(use.kind != "product" for use in unit.uses):
        return "it is looked up or convolved too, which int8 products do not serve"
    return obstacle(unit)


class _Products:
    """Replaces products of one model."""

    def __init__(self, model: ir.Model, bits: int) -> None:
        self.graph, self.bits = model.graph, bits
        self.names = Names(model)
        self.tokens: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def replace(self, units: Sequence[Unit], stored: Sequence[Rounded]) -> None:
        """Replaces all uses of each unit; activations that several read are rounded once."""
        self._round_tokens(units)
        for unit, codes in zip(units, stored, strict=True):
            shared = Emitter(self.graph, self.names, unit.name, unit.anchor)
            weight = self._weight(unit, codes, shared)
            self.graph.insert_before(unit.anchor, shared.nodes)
            for use in unit.uses:
                self._replace(unit, use, weight)
            drop_note(unit.notes, ColumnScales)
            for view in reversed(unit.views):
                self.graph.remove(view, safe=True)
            self.graph.initializers.pop(unit.name)

    def _round_tokens(self, units: Sequence[Unit]) -> None:
        readers: dict[ir.Value, list[tuple[Unit, Use]]] = {}
        for unit in units:
            for use in unit.uses:
                readers.setdefault(use.activation, []).append((unit, use))
        order = {node: at for at, node in enumerate(self.graph)}
        for value, found in readers.items():
            first = min((use.node for _, use in found), key=lambda node: order[node])
            emit = _Tokens(self.graph, self.names, f"{value.name}/int8", first)
            self.tokens[value] = emit.codes(value, result_type(*found[0]))
            self.graph.insert_before(first, emit.nodes)

    def _weight(self, unit: Unit, stored: Rounded, emit: Emitter) -> tuple[ir.Value, ir.Value]:
        """Stores codes (columns x rows once loaded) and scales (rows)."""
        codes = stored.codes.numpy()
        scales = emit.constant("scales", stored.scales.numpy()[:, 0].astype(np.float16))
        wide = emit.node(
            "dequantize", "scales/float", "Cast", [scales], {"to": int(FLOAT)}, dtype=FLOAT
        )
        if self.bits == 8:
            return emit.constant("codes", codes.T), wide
        return _Unpacking(emit, codes, self.bits).codes(), wide

    def _replace(self, unit: Unit, use: Use, weight: tuple[ir.Value, ir.Value]) -> None:
        emit = Emitter(self.graph, self.names, unit.name, use.node)
        tokens, steps = self.tokens[use.activation]
        middle = emit.constant("middle", np.array(_MIDDLE, np.uint8))
        dtype = result_type(unit, use)
        found = emit.node(
            "kernel", "sum", "MatMulInteger", [tokens, weight[0], middle], dtype=INT32
        )
        found = emit.node(None, "sum/float", "Cast", [found], {"to": int(FLOAT)}, dtype=FLOAT)
        found = emit.node(None, "rows", "Mul", [found, weight[1]], dtype=FLOAT)
        found = emit.node(None, "product", "Mul", [found, steps], dtype=FLOAT)
        if dtype != FLOAT:
            found = emit.node(None, "narrow", "Cast", [found], {"to": int(dtype)}, dtype=dtype)
        if use.node.op_type == "Gemm":
            found = affine(use.node, found, dtype, emit)
        emit.nodes[0].metadata_props.update(
            {
                key: text
                for key, text in use.node.metadata_props.items()
                if key not in emit.nodes[0].metadata_props
            }
        )
        ir.convenience.replace_nodes_and_values(
            self.graph, use.node, [use.node], emit.nodes, use.node.outputs, [found]
        )


class _Tokens(Emitter):
    """Emits the rounding of one activation."""

    def codes(self, x: ir.Value, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
        """Returns codes (uint8, shaped like ``x``) and steps (one for each token)."""
        if dtype != FLOAT:
            x = self.node(None, "wide", "Cast", [x], {"to": int(FLOAT)}, dtype=FLOAT)
        size = self.node(None, "size", "Abs", [x], dtype=FLOAT)
        peak = self._largest(size)
        step = self.node(
            None, "step", "Mul", [peak, self._number(1 / largest_code(8))], dtype=FLOAT
        )
        smallest = self._number(float(np.finfo(np.float32).tiny))
        step = self.node(None, "step", "Max", [step, smallest], dtype=FLOAT)
        ratio = self.node(None, "ratio", "Div", [x, step], dtype=FLOAT)
        near = self.node(None, "near", "Round", [ratio], dtype=FLOAT)
        code = self.node(None, "code", "Add", [near, self._number(_MIDDLE)], dtype=FLOAT)
        stored = self.node(None, "codes", "Cast", [code], {"to": int(UINT8)}, dtype=UINT8)
        return stored, step

    def _number(self, value: float) -> ir.Value:
        return self.constant("number", np.array(value, np.float32))

    def _largest(self, size: ir.Value) -> ir.Value:
        """Emits the largest entry of every token; its axes are an input from opset 18 on."""
        if self._graph.opset_imports.get("", 1) < 18:
            return self.node(
                None, "peak", "ReduceMax", [size], {"axes": [-1], "keepdims": 1}, dtype=FLOAT
            )
        axis = self.constant("axis", np.array([-1], np.int64))
        return self.node(None, "peak", "ReduceMax", [size, axis], {"keepdims": 1}, dtype=FLOAT)


class _Unpacking:
    """Stores codes of 4 bits in bytes; they are widened to int8 when the model is loaded."""

    def __init__(self, emit: Emitter, codes: np.ndarray, bits: int) -> None:
        rows, columns = codes.shape
        self.emit, self.bits, self.shape = emit, bits, (rows, columns)
        padded = columns + columns % (8 // bits)
        self.padded = padded
        self.packed = emit.constant("codes", pack(codes, bits, padded))

    def codes(self) -> ir.Value:
        """Returns int8, columns x rows. All of it depends on constants only."""
        rows, columns = self.shape
        byte = self._reshape("byte", self.packed, [rows, -1, 1], UINT8)
        number = self._op("number", "Cast", [byte], FLOAT, to=int(FLOAT))
        powers = self.emit.constant("powers", np.array([1, 1 << self.bits], np.float32))
        low = self._op("low", "Div", [number, powers], FLOAT)
        whole = self._op("whole", "Floor", [low], FLOAT)
        base = self.emit.constant("base", np.array(1 << self.bits, np.float32))
        field = self._op("field", "Mod", [whole, base], FLOAT, fmod=1)
        flat = self._reshape("flat", field, [rows, self.padded], FLOAT)
        flat.shape = ir.Shape([rows, self.padded])
        wide = self._op("wide", "Cast", [flat], INT32, to=int(INT32))
        zero = self.emit.constant("zero", np.array(code_of_zero(self.bits), np.int32))
        signed = self._op("signed", "Sub", [wide, zero], INT32)
        turned = self._op("turned", "Transpose", [signed], INT32, perm=[1, 0])
        narrow = self._op("narrow", "Cast", [turned], INT8, to=int(INT8))
        if self.padded == columns:
            return narrow
        bounds = [
            self.emit.constant(f"cut/{what}", np.array([value], np.int64))
            for what, value in (("from", 0), ("to", columns), ("axis", 0))
        ]
        cut = self._op("cut", "Slice", [narrow, *bounds], INT8)
        cut.shape = ir.Shape([columns, rows])
        return cut

    def _op(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value],
        dtype: ir.DataType,
        **attributes: int | str | Sequence[int],
    ) -> ir.Value:
        return self.emit.node("dequantize", name, op_type, inputs, attributes, dtype=dtype)

    def _reshape(
        self, name: str, value: ir.Value, shape: list[int], dtype: ir.DataType
    ) -> ir.Value:
        dims = self.emit.constant(f"{name}/dims", np.array(shape, np.int64))
        return self._op(name, "Reshape", [value, dims], dtype)
