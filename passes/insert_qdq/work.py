"""What the units of one run of a pass share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...ir import ArrayStore, Option, QuantSpec, TensorStats, Unit, UsageError, Use, note_of
from ...ir.unit_arrays import UnitArrays
from ..engine.emission.array import expand_unit, expandable
from ..engine.emission.dequantized_weight import emit_dequantized_weight
from ..engine.emission.emitter import Emitter, Names
from ..engine.emission.replacing import replace_weight
from ..engine.numerics.pair_sums import kernel_order, overflowing_rows
from ..engine.pipeline.base import PassContext
from ..engine.statistics.moved import read_moved

_BYTE = 8


@dataclass
class Work:
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

    def check_headroom(self) -> None:
        """Refuses INT8 rows whose products some processors would clip."""
        if not self.context.capabilities.needs_headroom:
            return
        for unit, spec in self.specs.values():
            if any(use.node in self.quantized for use in unit.uses):
                _check_headroom(unit, spec, self.context.arrays)

    def lower_convolution(self, unit: Unit) -> None:
        """Lets a convolution read codes and, where there is one, its rounded activation."""
        graph, arrays = self.model.graph, self.context.arrays
        shared = Emitter(graph, self.names, unit.name, unit.anchor)
        for use in unit.uses:
            if use.node in self.quantized:
                use.node.replace_input_with(0, self.quantized[use.node])
        replace_weight(graph, unit, emit_dequantized_weight(unit, arrays, shared), shared)
        UnitArrays(unit.name, arrays).discard("codes", "")  # the graph holds them now

    def expand(self, unit: Unit, spec: QuantSpec) -> None:
        """Lets the readers of a unit read floats that are made of its codes."""
        graph, arrays = self.model.graph, self.context.arrays
        if self.context.capabilities.arrays == "expand":
            expand_unit(graph, unit, spec, arrays, self.names)
            return
        emit = Emitter(graph, self.names, unit.name, unit.anchor)
        replace_weight(graph, unit, emit_dequantized_weight(unit, arrays, emit), emit)
        UnitArrays(unit.name, arrays).discard("codes", "")  # the graph holds them now

    def expand_the_rest(self) -> None:
        """Lets convolutions whose activations stay in float take their weights as floats.

        Runtimes would make floats of the codes in every run, otherwise only once.
        """
        for unit, spec in list(self.specs.values()):
            if unit.uses[0].kind != "conv" or any(u.node in self.quantized for u in unit.uses):
                continue
            if expandable(unit, spec, self.context.capabilities):
                self.expanded[unit.name] = self.specs.pop(unit.name)

    def integer_rows(self, unit: Unit, use: Use, *, float8: bool = False) -> bool:
        """Tells whether an integer kernel can serve some rows of ``unit`` in ``use``.

        Args:
            unit: The unit.
            use: One of its uses.
            float8: Whether kernels of floats of 8 bits are asked for instead.
        """
        if use.kind not in ("product", "conv"):
            return False
        options = map(Option.parse, self.specs[unit.name][1].options)
        by_row = (one for one in options if one.group == unit.shape[1] and one.bits == _BYTE)
        return any(option.float8 == float8 for option in by_row)

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
            [
                one.rows
                for one in classes
                if one.option.group == unit.shape[1] and one.option.bits == _BYTE
            ]
        )
        energy = np.square(unit.matrix()[chosen], dtype=np.float64).sum(axis=1)
        return float(0.5 * rows[chosen] @ energy * error)


def activation(use: Use) -> ir.Value:
    """Returns what a product or convolution reads."""
    value = use.node.inputs[0]
    assert value is not None
    return value


def _check_headroom(unit: Unit, spec: QuantSpec, arrays: ArrayStore) -> None:
    own = UnitArrays(unit.name, arrays)
    for one in own.row_classes(spec.options, spec.counts):
        is_int8_row = one.option.group == unit.shape[1] and one.option.bits == 8
        if (
            is_int8_row
            and overflowing_rows(own.get("codes", one.index)[:, kernel_order(unit)]).any()
        ):
            raise no_headroom(f" of unit {unit.name!r}")


def no_headroom(whose: str) -> UsageError:
    """Returns the refusal of INT8 rows, ``whose`` in words, without headroom."""
    return UsageError(
        f"processors without VNNI would clip products of INT8 rows{whose} with rounded"
        " activations",
        hint="add leave-headroom before it",
    )
