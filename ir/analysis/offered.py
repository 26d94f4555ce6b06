"""The options that a target offers for the storage of a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from .. import Capabilities, Option, Unit, Use
from ..operands import cast_type

DEFAULT_GROUPS = (64,)
_ACTIVATIONS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_OLDEST_OPSETS = {"lookup": (11, "BitShift"), "conv": (13, "DequantizeLinear by rows")}


@dataclass(frozen=True)
class Offer:
    """Which of the options that a target can store are to be considered.

    Attributes:
        groups: Group sizes, where the target's kernels take them.
        expand: Whether codes may take more room in memory than in the file.
        bits: Widths; all when it is empty. 16 stands for float16 for whole units.
    """

    groups: tuple[int, ...] = DEFAULT_GROUPS
    expand: bool = False
    bits: tuple[int, ...] = ()

    def options(self, unit: Unit, table: Capabilities) -> list[Option]:
        """Returns the options of ``unit`` by growing size; all of them if none is wanted."""
        offered = offered_options(unit, table, self.groups, expand=self.expand)
        wanted = [one for one in offered if one.bits in self.bits]
        half = Option.half()
        if offered and half.bits in self.bits and not half_obstacle(unit):
            wanted.append(half)
        return wanted or offered


def offered_options(
    unit: Unit,
    table: Capabilities,
    groups: Sequence[int] = DEFAULT_GROUPS,
    *,
    expand: bool = False,
) -> list[Option]:
    """Returns the options that every use of ``unit`` has a kernel for, by growing size.

    Args:
        unit: A unit that need not stay in float.
        table: The capabilities of the target.
        groups: Group sizes to offer. Where none of them fits the row or the kernels, the
            smallest that the kernels take stands in.
        expand: Whether codes may take more room in memory than in the file.
    """
    if obstacle(unit):
        return []
    columns = unit.shape[1]
    expand = expand and not expansion_obstacle(unit, table)
    common = set.intersection(*(_options_of(use, unit, table, expand) for use in unit.uses))
    by_row = {one for one in common if _takes_rows(one, columns, table)}
    grouped = common - by_row
    # A group wider than the row would store padding.
    fitting = {one for one in grouped if one.group in groups and one.group <= columns}
    if not fitting:
        smallest = min((one.group for one in grouped), default=0)
        fitting = {one for one in grouped if one.group == smallest}
    return sorted(fitting | by_row, key=lambda option: (option.row_bytes(columns), option))


def _takes_rows(option: Option, columns: int, table: Capabilities) -> bool:
    """Tells whether a row is one group because the kernel has it so, whatever was asked."""
    kernel = table.kernel(option.kernel_bits)
    return kernel is not None and kernel.per_row and option.group == columns


def _options_of(use: Use, unit: Unit, table: Capabilities, expand: bool) -> set[Option]:
    rows, columns = unit.shape
    if use.kind == "lookup":
        return set(table.lookup_options(columns, expand=expand))
    if use.kind == "conv":
        return set(table.convolution_options(columns))
    return set(table.product_options(rows, columns, expand=expand))


def obstacle(unit: Unit) -> str:
    """Returns why no target can store the unit in codes as it is; empty when they can."""
    opset = _opset(unit)
    for use in unit.uses:
        dtype = result_type(unit, use)
        if dtype not in _ACTIVATIONS:
            return f"{use.node.op_type} {use.node.name!r} computes in {dtype.name.lower()}"
        oldest, operator = _OLDEST_OPSETS.get(use.kind, (1, ""))
        if opset < oldest:
            return f"opset {opset} has no {operator}; opset {oldest} has"
    return ""


def half_obstacle(unit: Unit) -> str:
    """Returns why the unit cannot be stored as float16 before a Cast; empty if it can."""
    if unit.tensor.dtype != ir.DataType.FLOAT:
        return f"it is {unit.tensor.dtype.name.lower()} already"
    return "" if unit.weight.is_initializer() else "it is not an initializer"


def expansion_obstacle(unit: Unit, table: Capabilities) -> str:
    """Returns why the unit's codes cannot expand at load; empty when they can."""
    opset = _opset(unit)
    if opset < 11:
        return f"opset {opset} has no BitShift; opset 11 has"
    if any(use.kind == "conv" for use in unit.uses):
        return "the codes of a convolution stay as they are stored"
    return "" if table.expanding else f"{table.target} has no widths that expand at load"


def _opset(unit: Unit) -> int:
    graph = unit.anchor.graph
    return graph.opset_imports.get("", 1) if graph is not None else 1


def result_type(unit: Unit, use: Use) -> ir.DataType:
    """Returns the type in which the consumer sees the weight, so also that of its result."""
    value = use.node.inputs[use.index]
    while value is not None and value is not unit.weight:
        view = value.producer()
        assert view is not None
        if view.op_type == "Cast":
            return cast_type(view) or unit.tensor.dtype
        value = view.inputs[0]
    return unit.tensor.dtype
