"""The options that a target offers for the storage of a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from .. import Capabilities, Option, Unit, Use
from ..operands import cast_type

DEFAULT_GROUPS = (64,)
INTEGERS = ("none", "beside", "quickest")
_ACTIVATIONS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_OLDEST_LOOKUP, _OLDEST_ARRAY = 10, 7
_OLDEST_ROUNDING = 11  # the first opset with DynamicQuantizeLinear


@dataclass(frozen=True)
class Offer:
    """Which of the options that a target can store are to be considered.

    Attributes:
        groups: Group sizes, where the target's kernels take them.
        expand: Whether codes may take more room in memory than in the file.
        bits: Widths; all when it is empty. 16 stands for float16 for whole units.
        integers: Kernels that multiply integers: ``none``, for products ``beside`` others of
            their width, or ``quickest``: for convolutions and LSTMs, too, instead of others.
    """

    groups: tuple[int, ...] = DEFAULT_GROUPS
    expand: bool = False
    bits: tuple[int, ...] = ()
    integers: str = INTEGERS[0]

    def options(self, unit: Unit, table: Capabilities) -> list[Option]:
        """Returns the options of ``unit`` by growing size; all of them if none is wanted."""
        offered = offered_options(unit, table, self.groups, expand=self.expand)
        if self.integers != INTEGERS[0]:
            whole = self.integers == INTEGERS[2]
            offered = _with_integers(unit, table, offered, whole_units=whole)
        wanted = [one for one in offered if not self.bits or one.bits in self.bits]
        half = Option.half()
        asked = half.bits in self.bits if self.bits else table.half
        wide = asked and all(one.bits != half.bits for one in offered)
        if offered and wide and not half_obstacle(unit):
            wanted.append(half)
        return wanted or offered


def offered_options(
    unit: Unit,
    table: Capabilities,
    groups: Sequence[int] = DEFAULT_GROUPS,
    *,
    expand: bool = False,
) -> list[Option]:
    """Returns the options that ``unit`` may take, by growing size.

    Those are the options that every use has a kernel for, or, where there is none, those of an
    array, which expands to floats.

    Args:
        unit: A unit that need not stay in float.
        table: The capabilities of the target.
        groups: Group sizes to offer. Where none of them fits the row or the kernels, the
            smallest that the kernels take stands in.
        expand: Whether codes may take more room in memory than in the file.
    """
    columns = unit.shape[1]
    common = _kernel_options(unit, table, expand)
    expanded = not common or unit.uses[0].takes_floats
    if not common and not array_obstacle(unit):
        common = set(table.array_options(columns))
    by_row = {one for one in common if expanded or _takes_rows(one, table)}
    by_row = {one for one in by_row if one.group == columns}
    grouped = common - by_row
    # A group wider than the row would store padding.
    fitting = {one for one in grouped if one.group in groups and one.group <= columns}
    if not fitting:
        smallest = min((one.group for one in grouped), default=0)
        fitting = {one for one in grouped if one.group == smallest}
    return sorted(fitting | by_row, key=lambda option: (option.row_bytes(columns), option))


def mixed_options(
    options: Sequence[Option], columns: int, bits: float
) -> list[tuple[Option, float]]:
    """Returns two options, and the shares of the rows that have them, for an average size.

    Args:
        options: What a unit is offered, by growing size.
        columns: Columns of the unit.
        bits: Stored bits per weight; beyond the options, the smallest or the largest.
    """
    sizes = [one.row_bytes(columns) * 8 / columns for one in options]
    below = max((at for at, size in enumerate(sizes) if size <= bits), default=0)
    above = min((at for at, size in enumerate(sizes) if size >= bits), default=len(sizes) - 1)
    span = sizes[above] - sizes[below]
    share = min(max((bits - sizes[below]) / span, 0.0), 1.0) if span > 0 else 0.0
    return [(options[below], 1 - share), (options[above], share)]


def _with_integers(
    unit: Unit, table: Capabilities, offered: list[Option], *, whole_units: bool
) -> list[Option]:
    """Returns what is offered with kernels that multiply integers, where they can serve.

    Args:
        unit: The unit.
        table: The capabilities of the target.
        offered: What is offered without them.
        whole_units: Whether units that are convolved or recur take them too. They do so as a
            whole, and nothing wider instead, which would make their neighbours slower. Nor do
            tables take wider codes: their bytes are for products of integers.
    """
    columns = unit.shape[1]
    if whole_units and all(use.kind == "lookup" for use in unit.uses):
        widest = max(table.integer_bits, default=0)
        return [one for one in offered if one.bits <= widest] or offered
    integers = table.integer_options(columns // _scales_in_a_row(unit))
    if not integers or not offered or any(not _takes_integers(use, unit) for use in unit.uses):
        return offered
    if not unit.uses[0].takes_floats:
        others = offered
        integers = () if expands_to_floats(unit, table) else integers
    elif whole_units:
        others = [one for one in offered if one.bits < max(one.bits for one in integers)]
    else:
        return offered
    return sorted({*others, *integers}, key=lambda one: (one.row_bytes(columns), one))


def _takes_integers(use: Use, unit: Unit) -> bool:
    """Tells whether a kernel of integers computes what ``use`` does."""
    if use.kind == "product":
        known = _opset(unit) >= _OLDEST_ROUNDING
        return known and result_type(unit, use) == ir.DataType.FLOAT
    if unit.tensor.dtype != ir.DataType.FLOAT or unit.views:
        return False
    is_convolution = use.kind == "conv" and use.node.op_type == "Conv"
    return is_convolution or is_recurrent(use)


def is_recurrent(use: Use) -> bool:
    """Tells whether a weight is one of an LSTM that an integer kernel could compute."""
    node = use.node
    known = node.op_type == "LSTM" and node.domain in ("", "ai.onnx")
    return known and use.index in (1, 2) and not node.attributes.get_int("layout", 0)


def _scales_in_a_row(unit: Unit) -> int:
    """Returns how many scales integer kernels take for a row: of an LSTM, by direction."""
    return unit.tensor.shape.numpy()[0] if is_recurrent(unit.uses[0]) else 1


def _takes_rows(option: Option, table: Capabilities) -> bool:
    """Tells whether a row may be one group because the kernel has it so."""
    kernel = table.kernel(option.kernel_bits)
    return kernel is not None and kernel.per_row


def expands_to_floats(unit: Unit, table: Capabilities) -> bool:
    """Tells whether codes of ``unit`` become floats when the model is loaded."""
    return unit.uses[0].takes_floats or not _kernel_options(unit, table, expand=False)


def _kernel_options(unit: Unit, table: Capabilities, expand: bool) -> set[Option]:
    """Returns the options that every use has a kernel for; those of arrays for arrays."""
    looked_up = all(use.kind == "lookup" for use in unit.uses)
    smallest = table.smallest_lookup if looked_up else table.smallest_kernel
    small = unit.size < smallest and not unit.uses[0].takes_floats
    if small or obstacle(unit):
        return set()
    expand = expand and not expansion_obstacle(unit, table)
    return set.intersection(*(_options_of(use, unit, table, expand) for use in unit.uses))


def _options_of(use: Use, unit: Unit, table: Capabilities, expand: bool) -> set[Option]:
    rows, columns = unit.shape
    if use.kind == "lookup":
        return set(table.lookup_options(columns, expand=expand))
    if use.kind == "conv":
        return set(table.convolution_options(columns))
    if use.kind == "array":
        return set(table.array_options(columns))
    return set(table.product_options(rows, columns, expand=expand))


def obstacle(unit: Unit) -> str:
    """Returns why no kernel of codes can serve the unit as it is; empty when some can."""
    if unit.uses[0].takes_floats:
        return array_obstacle(unit)
    opset = _opset(unit)
    for use in unit.uses:
        dtype = result_type(unit, use)
        if dtype not in _ACTIVATIONS:
            return f"{use.node.op_type} {use.node.name!r} computes in {dtype.name.lower()}"
        if use.kind == "lookup" and opset < _OLDEST_LOOKUP:
            return f"opset {opset} has no Mod; opset {_OLDEST_LOOKUP} has"
    return ""


def array_obstacle(unit: Unit) -> str:
    """Returns why codes of the unit cannot expand to floats; empty when they can."""
    opset = _opset(unit)
    if opset < _OLDEST_ARRAY:
        return f"opset {opset} has no Mul that broadcasts; opset {_OLDEST_ARRAY} has"
    return ""


def missing(unit: Unit, table: Capabilities) -> str:
    """Returns why ``table`` offers nothing for a unit that could be stored in codes."""
    rows, columns = unit.shape
    return array_obstacle(unit) or f"{table.target} has no kernel for {rows} x {columns}"


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
    if any(use.takes_floats for use in unit.uses):
        return f"{unit.uses[0].node.op_type} reads floats, which take more room than any codes"
    return "" if table.expanding else f"{table.target} has no widths that expand at load"


def _opset(unit: Unit) -> int:
    graph = unit.anchor.graph
    return graph.opset_imports.get("", 1) if graph is not None else 1


def result_type(unit: Unit, use: Use) -> ir.DataType:
    """Returns the type in which the consumer sees the weight, so also that of its result.

    Of an ``array``, which is stored as it is seen before all views, that of the weight.
    """
    if use.kind == "array":
        return unit.tensor.dtype
    value = use.node.inputs[use.index]
    while value is not None and value is not unit.weight:
        view = value.producer()
        assert view is not None
        if view.op_type == "Cast":
            return cast_type(view) or unit.tensor.dtype
        value = view.inputs[0]
    return unit.tensor.dtype
