"""The pass ``insert-qdq``: rounded units in standard QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ...ir import (
    ArrayStore,
    Budgeted,
    FloatActivations,
    LeftInFloat,
    Option,
    OutlierColumns,
    QuantSpec,
    StoredPart,
    TensorStats,
    Unit,
    UsageError,
    Use,
    annotate,
    drop_note,
    need_note,
    note_of,
    quantizable,
)
from ...ir.analysis.offered import expands_to_floats, obstacle, result_type
from ...ir.text_form import did_you_mean
from ...ir.unit_arrays import UnitArrays
from ..engine.emission.array import expand_unit, expandable
from ..engine.emission.convolution import emit_convolution
from ..engine.emission.dequantized import (
    WIDTHS,
    DequantizedUnit,
    emit_dequantized_product,
    storable,
)
from ..engine.emission.emitter import Emitter, Names
from ..engine.emission.lookup import emit_lookup
from ..engine.emission.replacing import forget_weight, replace_node, replace_weight
from ..engine.numerics.activation_grid import RANGES, TYPES, Grid, find_grid
from ..engine.numerics.pair_sums import kernel_order, overflowing_rows
from ..engine.pipeline.base import Pass, PassContext, Promise
from ..engine.pipeline.forecast import Forecast, Headroom, RaisedOpset
from ..engine.statistics.moved import read_moved
from .activations import histograms, quantize
from .measured import measured_losses
from .regions import integer_convolutions

ACTIVATIONS = ("none", *TYPES)
_OPSET = 21
_SAMPLES = 16  # enough for a range; a Hessian needs more


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Replace rounded weights by codes and a DequantizeLinear, in standard ONNX only.

    - A MatMul or Gemm becomes one MatMul for each option of the unit's rows: INT4 in blocks
      along the input channels, or INT8 with one scale per output channel. A Concat joins them,
      followed by a Gather if the stored order is not the order of the rows.
    - A Gather looks up int8 codes, and only those are multiplied by their scales. Codes of 4
      bits become int8 when the runtime loads the model, because OpenVINO's BitShift is wrong.
      A table that also serves a product is stored once.
    - A Conv takes its weight as floats, which the runtime makes of int8 codes with one scale
      per output channel when it loads the model.

    With ``activations=int8`` or ``uint8``, products of INT8 rows read their activations
    through a QuantizeLinear and a DequantizeLinear with one static scale from calibration
    samples, so that runtimes can multiply integers. The results of convolutions are rounded
    too, with additions and pools between them, so that one integer kernel follows the other
    (see ``regions.py``), and a Conv reads a DequantizeLinear of its codes. Where its result is
    an output of the model it computes in float. No runtime has integer kernels for INT4 rows,
    so their activations stay as they are.

    ``int8`` is symmetric, as TensorRT requires; ONNX Runtime is fast with ``uint8`` only. One
    static scale can ruin an activation with rare large values: the most expensive of products
    stay in float too, see ``tolerance``. What the activations of convolutions lose is
    measured, one at a time.

    Processors without VNNI clip sums of two products in these kernels, so ``leave-headroom``
    has to come first.

    The only zero points are those of ``uint8`` activations. Apart from rounded activations,
    the graph computes exactly the same as the simulated one.

    Attributes:
        activations: ``none``, ``int8`` or ``uint8``.
        ranges: Range of an activation's scale: ``mse`` clips the farthest values if that
            lowers the mean squared error, ``minmax`` covers everything that calibration saw.
        tolerance: Activations stay in float, the most expensive first, until the predicted
            cost of the others is at most this many times that of rounding the weights.
    """

    name: ClassVar[str] = "insert-qdq"
    opset: ClassVar[int] = _OPSET
    reads = (QuantSpec,)
    writes = (StoredPart,)
    drops = (QuantSpec, FloatActivations)
    promise: ClassVar[Promise] = Promise.SAME_SIMULATION

    activations: str = "none"
    ranges: str = "mse"
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        for value, known in ((self.activations, ACTIVATIONS), (self.ranges, RANGES)):
            if value not in known:
                hint = did_you_mean(value, known)
                raise UsageError(f"insert-qdq knows no {value!r}", hint=hint)
        if not self.tolerance >= 0:
            raise UsageError(f"insert-qdq cannot tolerate {self.tolerance}", hint="0 or more")
        for name in ("ranges", "tolerance"):
            given = getattr(self, name)
            if self.activations == "none" and given != getattr(type(self), name):
                raise UsageError(
                    f"{name}={given} means nothing without quantized activations",
                    hint="add activations=int8 or activations=uint8",
                )

    def preflight(self, model: ir.Model, context: PassContext, forecast: Forecast) -> None:
        """Refuses targets with other widths, and graphs that will be too old."""
        if self.activations != "none" and forecast.get(Headroom) is None:
            raise _no_headroom("")
        raised = forecast.get(RaisedOpset) or RaisedOpset(0)
        _check_opset(max(model.opset_imports.get("", 1), raised.version))
        table = context.capabilities
        odd = [kernel.bits for kernel in table.kernels if kernel.bits not in WIDTHS]
        if odd:
            raise UsageError(
                f"{table.target} offers weights of {odd[0]} bits, for which opset {_OPSET} has"
                " no type",
                hint="compile with --target qdq",
            )

    def run(self, model: ir.Model, context: PassContext) -> bool:
        _check_opset(model.opset_imports.get("", 1))
        work = _Work(model, context, Names(model))
        units = [u for u in quantizable(model) if note_of(u.notes, QuantSpec) is not None]
        if any(note_of(unit.notes, OutlierColumns) is not None for unit in units):
            raise UsageError(
                f"{self.name} keeps no input channels in 16 bits",
                hint="leave keep out of annotate-sensitivity",
            )
        for unit in units:
            spec = need_note(unit.notes, QuantSpec)
            drop_note(unit.notes, QuantSpec)
            table = context.capabilities
            why = obstacle(unit) or storable(unit, spec)
            expands = bool(why) or expands_to_floats(unit, table)
            if expands and unit.uses[0].kind != "conv" and expandable(unit, spec, table):
                work.expanded[unit.name] = (unit, spec)
            elif why:
                work.skipped[unit.name] = why
                annotate(unit.notes, LeftInFloat(unit.name, why))
            else:
                work.specs[unit.name] = (unit, spec)
        facts = self._quantize_activations(work) if self.activations != "none" else {}
        work.expand_the_rest()
        for unit in units:
            drop_note(unit.notes, FloatActivations)
        for unit, spec in work.specs.values():
            if any(use.node in work.quantized for use in unit.uses):
                _check_headroom(unit, spec, context.arrays)
        for unit, spec in work.specs.values():
            _lower(unit, spec, work)
        for unit, spec in work.expanded.values():
            expand_unit(model.graph, unit, spec, context.arrays, work.names)
        _keep_products_of_codes(model.graph)
        count = len(work.specs) + len(work.expanded)
        lowered = {"lowered": count, "skipped": work.skipped}
        context.report[self.name] = {**lowered, **facts}
        return bool(units)

    def _quantize_activations(self, work: _Work) -> dict[str, Any]:
        """Chooses a grid for every activation that an integer kernel reads."""
        samples = work.context.calibration
        if samples is None:
            raise UsageError(
                f"activations={self.activations} needs samples",
                hint="give --calibration FILE",
            )
        reads = [(unit, use) for unit, _ in work.specs.values() for use in unit.uses]
        reads = [(unit, use) for unit, use in reads if work.integer_rows(unit, use)]
        reads = [one for one in reads if note_of(one[0].notes, FloatActivations) is None]
        able, places = integer_convolutions(
            work.model.graph, [use.node for _, use in reads if use.kind == "conv"]
        )
        reads = [one for one in reads if one[1].kind != "conv" or one[1].node in able]
        types = {_activation(use): result_type(unit, use) for unit, use in reads}
        for value in places:
            types.setdefault(value, value.dtype or ir.DataType.FLOAT)
        seen = histograms(work.model, list(types), samples.first(_SAMPLES), work.context)
        ranges = {one: seen[places.get(one, one)] for one in types}
        grids = {one: find_grid(ranges[one], self.activations, self.ranges) for one in types}
        errors = {one: grid.error(seen[one]) for one, grid in grids.items()}
        losses = dict.fromkeys(types, 0.0)
        for unit, use in reads:
            losses[_activation(use)] += work.loss(unit, use, errors[_activation(use)])
        budget = note_of(work.model, Budgeted)
        products = {one: loss for one, loss in losses.items() if one not in places}
        costly = _costly(products, self.tolerance * budget.loss) if budget is not None else {}
        between = {one: grids[one] for one in places}
        losses |= measured_losses(work.model, between, work.context)
        made = {
            one: quantize(work.model.graph, work.names, one, grid, types[one])
            for one, grid in grids.items()
            if one not in costly
        }
        work.quantized = {
            use.node: made[_activation(use)] for _, use in reads if _activation(use) in made
        }
        for value in places:
            if value in made:
                _let_all_read(value, made[value])
        loss = sum(losses[one] for one in made)
        if budget is not None:
            annotate(work.model, replace(budget, loss=budget.loss + loss))
        left = [
            use.node.name
            for unit, _ in work.specs.values()
            for use in unit.uses
            if use.kind in ("product", "conv") and use.node not in work.quantized
        ]
        return {
            "activations": {
                str(one.name): _facts(grids[one], errors[one], losses[one]) for one in made
            },
            "activation_loss": loss,
            "too_costly": {str(one.name): losses[one] for one in costly},
            "float_activations": left,
        }


def _costly(losses: Mapping[ir.Value, float], most: float) -> dict[ir.Value, float]:
    """Returns the costliest activations, without which the others lose ``most`` at most."""
    costly, left = {}, sum(losses.values())
    for one, loss in sorted(losses.items(), key=lambda pair: -pair[1]):
        if left <= most or loss == 0:
            break
        costly[one] = loss
        left -= loss
    return costly


@dataclass
class _Work:
    """The state that the units of one run share.

    Attributes:
        model: The graph.
        context: The context of the pass.
        names: Hands out names.
        specs: By name: the units to lower, and how they were rounded.
        expanded: The same, of units that their readers take as floats.
        skipped: Why others stay in float.
        quantized: By product or convolution: the rounded activation, where there is one.
    """

    model: ir.Model
    context: PassContext
    names: Names
    specs: dict[str, tuple[Unit, QuantSpec]] = field(default_factory=dict)
    expanded: dict[str, tuple[Unit, QuantSpec]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    quantized: dict[ir.Node, ir.Value] = field(default_factory=dict)

    def expand_the_rest(self) -> None:
        """Lets convolutions whose activations stay in float take their weights as floats.

        Runtimes would make floats of the codes in every run, otherwise only once.
        """
        for unit, spec in list(self.specs.values()):
            if unit.uses[0].kind != "conv" or any(u.node in self.quantized for u in unit.uses):
                continue
            if expandable(unit, spec, self.context.capabilities):
                self.expanded[unit.name] = self.specs.pop(unit.name)

    def integer_rows(self, unit: Unit, use: Use) -> bool:
        """Tells whether an integer kernel can serve some rows of ``unit`` in ``use``."""
        if use.kind not in ("product", "conv"):
            return False
        options = map(Option.parse, self.specs[unit.name][1].options)
        return any(option.group == unit.shape[1] for option in options)

    def loss(self, unit: Unit, use: Use, error: float) -> float:
        """Returns the predicted divergence of an activation's squared error, in nats.

        ``1/2 sum_n g_n |w_n|^2 e`` over the rows of products with integer kernels. What the
        activations of convolutions lose is measured.
        """
        if use.kind != "product" or note_of(unit.notes, TensorStats) is None:
            return 0.0
        _, spec = self.specs[unit.name]
        rows = read_moved(unit, self.context.arrays, unit.uses.index(use), "rows")
        own = UnitArrays(unit.name, self.context.arrays)
        classes = own.row_classes(spec.options, spec.counts)
        chosen = np.concatenate(
            [one.rows for one in classes if one.option.group == unit.shape[1]]
        )
        energy = np.square(unit.matrix()[chosen], dtype=np.float64).sum(axis=1)
        return float(0.5 * rows[chosen] @ energy * error)


def _let_all_read(value: ir.Value, rounded: ir.Value) -> None:
    """Lets everybody who reads an activation read the rounded one."""
    for usage in list(value.uses()):
        if usage.node.op_type != "QuantizeLinear":
            usage.node.replace_input_with(usage.idx, rounded)


def _keep_products_of_codes(graph: ir.Graph) -> None:
    """Adds biases to products of codes by Sum instead of Add.

    ONNX Runtime makes a Gemm of the product of a matrix and an Add, and then expands the codes
    in every run instead of taking them for a product of codes.
    """
    for node in graph:
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        biases = sum(value is not None and value.is_initializer() for value in node.inputs)
        makers = [value.producer() for value in node.inputs if value is not None]
        if biases == 1 and any(map(_is_product_of_codes, makers)):
            node.op_type = "Sum"


def _is_product_of_codes(node: ir.Node | None) -> bool:
    weight = node.inputs[1] if node is not None and node.op_type == "MatMul" else None
    maker = weight.producer() if weight is not None else None
    return maker is not None and maker.op_type == "DequantizeLinear"


def _check_headroom(unit: Unit, spec: QuantSpec, arrays: ArrayStore) -> None:
    """Refuses INT8 rows whose products some processors would clip."""
    own = UnitArrays(unit.name, arrays)
    for one in own.row_classes(spec.options, spec.counts):
        is_int8_row = one.option.group == unit.shape[1] and one.option.bits == 8
        if (
            is_int8_row
            and overflowing_rows(own.get("codes", one.index)[:, kernel_order(unit)]).any()
        ):
            raise _no_headroom(f" of unit {unit.name!r}")


def _no_headroom(whose: str) -> UsageError:
    return UsageError(
        f"processors without VNNI would clip products of INT8 rows{whose} with rounded"
        " activations",
        hint="add leave-headroom before insert-qdq",
    )


def _check_opset(opset: int) -> None:
    if opset < _OPSET:
        raise UsageError(
            f"insert-qdq needs opset {_OPSET}, and the graph has {opset}",
            hint="add raise-opset after normalize",
        )


def _activation(use: Use) -> ir.Value:
    value = use.node.inputs[0]
    assert value is not None
    return value


def _facts(grid: Grid, error: float, loss: float) -> dict[str, Any]:
    return {
        "scale": grid.scale,
        "zero_point": grid.zero_point,
        "squared_error": error,
        "predicted": loss,
    }


def _lower(unit: Unit, spec: QuantSpec, work: _Work) -> None:
    """Replaces all uses of ``unit`` and removes its float weight."""
    graph, arrays = work.model.graph, work.context.arrays
    shared = Emitter(graph, work.names, unit.name, unit.anchor)
    if unit.uses[0].kind == "conv":
        for use in unit.uses:
            if use.node in work.quantized:
                use.node.replace_input_with(0, work.quantized[use.node])
        replace_weight(graph, unit, emit_convolution(unit, arrays, shared), shared)
    else:
        _lower_matrix(unit, spec, work, shared)
    UnitArrays(unit.name, arrays).discard("codes", "")  # the graph holds them now


def _lower_matrix(unit: Unit, spec: QuantSpec, work: _Work, shared: Emitter) -> None:
    graph = work.model.graph
    stored = DequantizedUnit(unit, spec, work.context.arrays, shared)
    results = []
    for use in unit.uses:
        emit = Emitter(graph, work.names, unit.name, use.node)
        dtype = result_type(unit, use)
        if use.kind == "lookup":
            result = emit_lookup(stored, use, dtype, "dequantize", emit)
        else:
            quantized = work.quantized.get(use.node)
            result = emit_dequantized_product(stored, use, dtype, quantized, emit)
        results.append((use.node, emit, result))
    graph.insert_before(unit.anchor, shared.nodes)
    for node, emit, result in results:
        replace_node(graph, node, emit.nodes, result)
    forget_weight(graph, unit)
